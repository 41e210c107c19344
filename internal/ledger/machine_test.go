package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A few accounts go through steps in any order, with any fault. Each step returns what the
// model returns. Every few steps the accounts in the database equal the model's, including the
// number of attempts. One bank runs for each processor; `make properties` runs them for longer.
func TestLedgerAsTheModel(t *testing.T) {
	t.Parallel()
	for n := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			checkBank(t)
		})
	}
}

// checkBank has rapid check a bank in a database of its own.
func checkBank(t *testing.T) {
	t.Helper()
	pool := servingPool(t)
	for _, sql := range faultSQL {
		ledgertest.Exec(t, pool, sql)
	}
	users := []uuid.UUID{ledgertest.User(t, pool), ledgertest.User(t, pool)}
	impatient := newImpatient(t, pool)
	var steps int64
	started := time.Now()
	rapid.Check(t, func(rt *rapid.T) {
		b := &bank{t: t, pool: pool, users: users, impatient: impatient, applier: ledger.NewApplier(pool), accounts: ledger.NewAccounts(pool)}
		b.Open(rt)
		b.Accept(rt)
		actions := rapid.StateMachineActions(b)
		actions["AcceptMore"], actions["ApplyMore"] = b.Accept, b.Apply // the most frequent steps
		rt.Repeat(actions)
		b.compare(rt)
		steps += b.steps
	})
	took := time.Since(started)
	t.Logf("%d steps in %v, %d a second", steps, took, steps*int64(time.Second)/int64(took))
	ledgertest.Check(t, pool)
}

// servingPool opens a pool that uses indexes from the start, as a worker's does: Postgres makes
// the first plans while the tables are empty.
func servingPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["enable_seqscan"] = "off"
	cfg.ConnConfig.RuntimeParams["enable_bitmapscan"] = "off"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// The amounts of transactions that a fault can be injected into. The table faults names the
// accounts.
const (
	refusedAmount = 13 // refused for as long as the account is broken
	killedAmount  = 17 // its connection is killed
)

// faultSQL makes a test's database fail at the transactions that the table faults names.
var faultSQL = []string{
	`CREATE TABLE faults (account_id bigint PRIMARY KEY, amount bigint NOT NULL, at text NOT NULL)`,
	`CREATE FUNCTION inject_fault() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF EXISTS (SELECT FROM faults WHERE account_id = NEW.account_id AND amount = NEW.amount AND at = TG_ARGV[0]) THEN
			IF NEW.amount = 13 THEN
				RAISE EXCEPTION 'an unlucky amount' USING ERRCODE = 'check_violation';
			END IF;
			PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(60);
		END IF;
		RETURN NEW;
	END $$`,
	`CREATE TRIGGER inject_fault BEFORE INSERT ON transactions FOR EACH ROW
		WHEN (NEW.amount IN (13, 17)) EXECUTE FUNCTION inject_fault('insert')`,
	`CREATE CONSTRAINT TRIGGER inject_fault_at_commit AFTER INSERT ON transactions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
		WHEN (NEW.amount IN (13, 17)) EXECUTE FUNCTION inject_fault('commit')`,
}

// bank is the state machine. Its exported methods are the steps, and its other methods the model.
//
// A step that is impossible is skipped before it draws a value, which costs rapid nothing. A step
// that costs much is rare: mostly a cheaper step runs in its place.
type bank struct {
	t         testing.TB
	pool      *pgxpool.Pool
	users     []uuid.UUID
	applier   *ledger.Applier
	accounts  *ledger.Accounts
	impatient *impatient

	opened  []*modelAccount
	touched []*modelAccount // since the last comparison
	steps   int64
}

type modelAccount struct {
	id      int64
	opening ledger.Opening
	balance int64
	history []string // as readSQL shows it
	jobs    []*modelJob
	status  ledger.AccountStatus
	broken  bool // refuses refusedAmount
}

type modelJob struct {
	id       uuid.UUID
	typ      ledger.EntryType
	amount   int64
	outcome  string // as readSQL shows it
	attempts int
}

const queued = "queued seq - balance - failure -"

// Open opens an account, or tries to with a number or a key that is used.
func (b *bank) Open(rt *rapid.T) {
	const maxAccounts = 4
	o := ledger.Opening{
		UserID:         rapid.SampledFrom(b.users).Draw(rt, "user"),
		Number:         "N" + uuid.NewString()[:30],
		Currency:       rapid.SampledFrom([]string{"KRW", "EUR"}).Draw(rt, "currency"),
		InitialDeposit: rapid.SampledFrom([]int64{0, 1, 1000, refusedAmount, ledger.MaxAmount}).Draw(rt, "initial deposit"),
	}
	if rapid.Bool().Draw(rt, "with a key") {
		o.Key = uuid.NewString()
	}
	if len(b.opened) > 0 {
		other := rapid.SampledFrom(b.opened).Draw(rt, "other account")
		switch rapid.SampledFrom([]string{"new", "same", "its number", "its key", "a job's key"}).Draw(rt, "reuse") {
		case "same":
			o = other.opening
		case "its number":
			o.Number = other.opening.Number
		case "its key":
			o.Key = other.opening.Key
		case "a job's key":
			if len(other.jobs) > 0 {
				o.UserID, o.Key = other.opening.UserID, rapid.SampledFrom(other.jobs).Draw(rt, "job").id.String()
			}
		}
	}
	want, wantErr := b.opens(o)
	if want == nil && wantErr == nil && len(b.opened) == maxAccounts {
		o = b.opened[0].opening
		want, wantErr = b.opens(o)
	}
	got, replayed, err := b.accounts.Open(b.t.Context(), o)
	switch {
	case !errors.Is(err, wantErr) || err == nil && replayed != (want != nil):
		rt.Fatalf("open: replayed %t, %v; the model says %t, %v", replayed, err, want != nil, wantErr)
	case err != nil:
		return
	case want == nil:
		want = &modelAccount{id: got.ID, opening: o, status: ledger.Open}
		if o.InitialDeposit > 0 {
			want.record(ledger.Deposit, o.InitialDeposit)
		}
		b.opened = append(b.opened, want)
	}
	if got.ID != want.id || got.Status != want.status || got.Balance != want.balance || got.LastSeq != int64(len(want.history)) {
		rt.Fatalf("opened %+v, the model says id %d, balance %d, seq %d", got, want.id, want.balance, len(want.history))
	}
	b.touch(want)
}

// opens returns the account that the opening's key has opened, or the error with which the
// opening is refused.
func (b *bank) opens(o ledger.Opening) (*modelAccount, error) {
	var taken error
	for _, a := range b.opened {
		mine := a.opening.UserID == o.UserID && o.Key != ""
		switch {
		case mine && a.opening == o:
			return a, nil
		case mine && a.opening.Key == o.Key,
			mine && slices.ContainsFunc(a.jobs, func(j *modelJob) bool { return j.id.String() == o.Key }):
			return nil, ledger.ErrKeyReused
		case a.opening.Number == o.Number:
			taken = ledger.ErrNumberTaken
		}
	}
	return nil, taken
}

var (
	amounts = rapid.OneOf(
		rapid.SampledFrom([]int64{1, refusedAmount, killedAmount}),
		rapid.Int64Range(1, 2000),
		rapid.Int64Range(ledger.MaxAmount-2000, ledger.MaxAmount),
	)
	types = rapid.SampledFrom([]ledger.EntryType{ledger.Deposit, ledger.Withdrawal})
)

// acceptSQL inserts jobs in the order in which they are given.
//
// $1 the account, $2 ids, $3 types, $4 amounts, $5 the accepting clock's
// advance in seconds.
const acceptSQL = `
	INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, created_at)
	SELECT job.id, accounts.id, user_id, job.type, job.amount, job.id::text, statement_timestamp() + make_interval(secs => $5)
	FROM accounts, unnest($2::uuid[], $3::entry_type[], $4::bigint[]) WITH ORDINALITY AS job (id, type, amount, n)
	WHERE accounts.id = $1
	ORDER BY job.n`

// Accept queues jobs. The clock that dates them may be wrong.
func (b *bank) Accept(rt *rapid.T) {
	maxJobs, most := 16, 4 // of an account, at once
	if oneIn(rt, 32) {
		maxJobs, most = 64, 40 // more than are sent at once
	}
	a := b.account(rt, func(a *modelAccount) bool { return len(a.jobs)+most <= maxJobs })
	var jobs []*modelJob
	for range min(most, rapid.SampledFrom([]int{1, 1, 1, 1, 1, 1, 2, most}).Draw(rt, "jobs")) {
		jobs = append(jobs, newJob(types.Draw(rt, "type"), amounts.Draw(rt, "amount")))
	}
	b.accept(rt, a, rapid.SampledFrom([]int{0, 0, -3600, 3600}).Draw(rt, "clock advance"), jobs...)
}

func newJob(typ ledger.EntryType, amount int64) *modelJob {
	return &modelJob{id: uuid.New(), typ: typ, amount: amount, outcome: queued}
}

func (b *bank) accept(rt *rapid.T, a *modelAccount, advance int, jobs ...*modelJob) {
	var (
		ids     []uuid.UUID
		types   []string
		numbers []int64
	)
	for _, j := range jobs {
		ids, types, numbers = append(ids, j.id), append(types, string(j.typ)), append(numbers, j.amount)
	}
	a.jobs = append(a.jobs, jobs...)
	b.exec(rt, acceptSQL, a.id, ids, types, numbers, advance)
}

func hasJobs(a *modelAccount) bool { return len(a.jobs) > 0 }

// works reports whether no attempt in the account fails. Where an attempt fails, the model cannot
// know which of two workers counts it, or whether an interrupted worker did.
func works(a *modelAccount) bool { return hasJobs(a) && !a.broken }

func never(*modelJob) bool { return false }

// Apply applies an account's jobs up to any of them: queued or done, the last or one before it.
func (b *bank) Apply(rt *rapid.T) {
	a, named := b.job(rt, hasJobs)
	b.apply(rt, a, named, limits.Draw(rt, "limit"))
}

var limits = rapid.SampledFrom([]int{1, 2, 3, 4, 6, 6, 10, 64}) // each costs a transaction, also where fewer jobs are queued

func (b *bank) apply(rt *rapid.T, a *modelAccount, named *modelJob, limit int) {
	want, wantErr := a.apply(named, limit, never)
	wantMore := wantErr != nil || a.oldestQueued(named) != nil
	if n := len(want); n > 0 && n == limit && want[n-1] != named && want[n-1].failed() {
		wantMore = true // Apply did not look behind the failed job; after a replay no job is there
	}
	applied, more, err := b.applier.Apply(b.t.Context(), named.id, limit)
	if more != wantMore || !errors.Is(err, wantErr) {
		rt.Fatalf("apply: more %t, %v; the model says %t, %v", more, err, wantMore, wantErr)
	}
	check(rt, applied, want)
}

// ApplyShared applies jobs of several accounts in shared batches, or of one account twice.
func (b *bank) ApplyShared(rt *rapid.T) {
	var open []*shared
	for range rapid.IntRange(1, 4).Draw(rt, "jobs") {
		a, named := b.job(rt, hasJobs)
		open = append(open, &shared{a: a, named: named, remaining: rapid.IntRange(1, 5).Draw(rt, "expected")})
	}
	limit := limits.Draw(rt, "limit")
	var (
		due, wantRemaining, wantTroubled []ledger.Due
		want                             []*modelJob
	)
	all := open
	for _, s := range all {
		due = append(due, ledger.Due{JobID: s.named.id, Jobs: s.remaining})
	}
	wantRemaining = due
	for limit := limit; len(open) > 0 && limit > 0; {
		share := max(limit/len(open), 1)
		var next []*shared
		wantRemaining = nil
		for _, s := range open {
			s.n = max(min(s.remaining, share), 1)
			limit -= s.n
		}
		for _, s := range open {
			want = append(want, s.apply()...)
		}
		for _, s := range open {
			switch {
			case s.refused:
				wantTroubled = append(wantTroubled, ledger.Due{JobID: s.named.id, Jobs: s.n})
			case s.remaining > 0:
				next, wantRemaining = append(next, s), append(wantRemaining, ledger.Due{JobID: s.named.id, Jobs: s.remaining})
			}
		}
		open = next
	}
	applied, remaining, troubled := b.applier.ApplyShared(b.t.Context(), due, limit)
	for _, s := range all {
		returned := func(due ledger.Due) bool { return due.JobID == s.named.id }
		if !slices.ContainsFunc(remaining, returned) && !slices.ContainsFunc(dueOf(troubled), returned) && s.named.outcome == queued {
			rt.Fatalf("apply shared: job %s is queued, and neither remains nor is troubled", s.named.id)
		}
	}
	if !slices.Equal(remaining, wantRemaining) || !slices.Equal(dueOf(troubled), wantTroubled) {
		rt.Fatalf("apply shared: remaining %v, troubled %v; the model says %v, %v", remaining, troubled, wantRemaining, wantTroubled)
	}
	check(rt, applied, want)
}

// shared is a job that ApplyShared is called with: it applies the n oldest queued jobs of the
// job's account, up to that job. remaining counts the queued jobs behind those n.
type shared struct {
	a            *modelAccount
	named        *modelJob
	n, remaining int
	refused      bool
}

// apply finishes the n jobs, up to the first that Postgres refuses. It counts no attempt, as
// ApplyShared counts none.
func (s *shared) apply() (finished []*modelJob) {
	for range s.n {
		oldest := s.a.oldestQueued(s.named)
		if oldest == nil {
			break
		}
		if s.refused = s.a.refuses(oldest); s.refused {
			return finished
		}
		s.a.finish(oldest)
		finished = append(finished, oldest)
	}
	s.remaining = 0
	for _, j := range s.a.jobs[:slices.Index(s.a.jobs, s.named)+1] {
		if j.outcome == queued {
			s.remaining++
		}
	}
	return finished
}

// ApplyUnknown calls Apply with an id that no job has.
func (b *bank) ApplyUnknown(rt *rapid.T) {
	applied, _, err := b.applier.Apply(b.t.Context(), uuid.New(), 64)
	if !errors.Is(err, ledger.ErrJobNotFound) || len(applied) > 0 {
		rt.Fatalf("apply of no job: applied %v, %v", applied, err)
	}
}

// ApplyTwiceAtOnce has two workers apply jobs of one account at the same time.
func (b *bank) ApplyTwiceAtOnce(rt *rapid.T) {
	a, first := b.job(rt, works)
	if !oneIn(rt, 16) {
		b.apply(rt, a, first, limits.Draw(rt, "limit"))
		return
	}
	named := []*modelJob{first, rapid.SampledFrom(a.jobs).Draw(rt, "other job")}
	limit := limits.Draw(rt, "limit")
	var (
		group   errgroup.Group
		applied [2][]ledger.Applied
		more    [2]bool
	)
	for i, j := range named {
		group.Go(func() (err error) {
			applied[i], more[i], err = b.applier.Apply(b.t.Context(), j.id, limit)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		rt.Fatalf("apply at once: %v", err)
	}
	// The model cannot know which worker applies which job. Together they apply the oldest queued
	// jobs, and a worker that reports that no more remains is right.
	last := named[0]
	if slices.Index(a.jobs, named[1]) > slices.Index(a.jobs, last) {
		last = named[1]
	}
	want, _ := a.apply(last, len(applied[0])+len(applied[1]), never)
	check(rt, byPosition(a, applied[0], applied[1]), want)
	for i, j := range named {
		if more[i] && len(applied[i]) < limit {
			rt.Fatalf("worker %d stopped at %d jobs of at most %d", i, len(applied[i]), limit)
		}
		if !more[i] && j.outcome == queued {
			rt.Fatalf("worker %d is done, and the job that it was to apply is still queued", i)
		}
		if !slices.Equal(byPosition(a, applied[i]), applied[i]) {
			rt.Fatalf("worker %d applied out of order", i)
		}
	}
}

// ApplyKilled applies jobs, and the connection dies at one of them: before its insert, or after
// its insert and before its commit.
func (b *bank) ApplyKilled(rt *rapid.T) {
	a, named := b.job(rt, works)
	if !oneIn(rt, 32) {
		b.apply(rt, a, named, limits.Draw(rt, "limit"))
		return
	}
	at := rapid.SampledFrom([]string{"insert", "commit"}).Draw(rt, "killed at")
	const limit = 64
	named = newJob(ledger.Deposit, 1)
	b.accept(rt, a, 0, newJob(ledger.Deposit, killedAmount), named)
	want, wantErr := a.apply(named, limit, func(j *modelJob) bool { return j.amount == killedAmount })
	b.exec(rt, `INSERT INTO faults VALUES ($1, $2, $3)`, a.id, killedAmount, at)
	applied, more, err := b.applier.Apply(b.t.Context(), named.id, limit)
	b.exec(rt, `DELETE FROM faults WHERE account_id = $1`, a.id)
	if wantErr == nil {
		if err != nil || more {
			rt.Fatalf("apply that met no fault: more %t, %v", more, err)
		}
		check(rt, applied, want)
		return
	}
	if err == nil || !more || errors.Is(err, ledger.ErrRefused) {
		rt.Fatalf("apply whose connection died: more %t, %v", more, err)
	}
	// Apply may not have learned of jobs that were committed before the fault, and of no others.
	check(rt, applied, want[:min(len(applied), len(want))])
}

// ApplyCancelled applies until the caller's timeout, at any moment.
func (b *bank) ApplyCancelled(rt *rapid.T) {
	a, named := b.job(rt, works)
	patience := time.Duration(rapid.IntRange(0, 20).Draw(rt, "patience")) * time.Millisecond / 2
	if !oneIn(rt, 128) {
		b.apply(rt, a, named, limits.Draw(rt, "limit"))
		return
	}
	applied, err := b.impatient.apply(b.t, named.id, patience)
	const doneSQL = `SELECT count(*) FROM job_states WHERE account_id = $1 AND status <> 'queued'`
	var done int
	if err := b.pool.QueryRow(b.t.Context(), doneSQL, a.id).Scan(&done); err != nil {
		rt.Fatal(err)
	}
	for _, j := range a.jobs {
		if j.outcome != queued {
			done--
		}
	}
	want, _ := a.apply(named, done, never)
	if err != nil { // Apply may not have learned of the last commits
		want = want[:min(len(applied), len(want))]
	}
	check(rt, applied, want)
}

// Break makes Postgres refuse an amount in one account, and queues a job of that amount.
func (b *bank) Break(rt *rapid.T) {
	if slices.ContainsFunc(b.opened, func(a *modelAccount) bool { return a.broken }) {
		rt.Skip("one at a time")
	}
	a := b.account(rt, func(*modelAccount) bool { return true })
	a.broken = true
	b.exec(rt, `INSERT INTO faults VALUES ($1, $2, 'insert')`, a.id, refusedAmount)
	b.accept(rt, a, 0, newJob(ledger.Deposit, refusedAmount))
}

func isBroken(a *modelAccount) bool { return a.broken }

// Fix ends the fault that Break injected.
func (b *bank) Fix(rt *rapid.T) {
	a := b.account(rt, isBroken)
	a.broken = false
	b.exec(rt, `DELETE FROM faults WHERE account_id = $1`, a.id)
}

// Exhaust applies up to one job, sometimes as often as a refused job needs to end failed.
func (b *bank) Exhaust(rt *rapid.T) {
	a, named := b.job(rt, isBroken)
	for range rapid.SampledFrom([]int{1, 1, 1, 1, 1, 1, 1, ledger.MaxAttempts}).Draw(rt, "times") {
		b.apply(rt, a, named, limits.Draw(rt, "limit"))
	}
}

// Replay queues failed jobs again, also where jobs that were behind them are still queued.
func (b *bank) Replay(rt *rapid.T) {
	a := b.account(rt, func(a *modelAccount) bool { return len(a.failed()) > 0 })
	b.compare(rt) // before the replay resets the attempts
	b.touch(a)
	jobs := a.failed()
	jobs = jobs[:rapid.IntRange(1, len(jobs)).Draw(rt, "failed jobs")]
	if rapid.IntRange(0, 3).Draw(rt, "with any other job") == 0 {
		if other := rapid.SampledFrom(a.jobs).Draw(rt, "other"); !slices.Contains(jobs, other) {
			jobs = append(jobs, other)
		}
	}
	for _, j := range jobs {
		var wantErr error
		if !j.failed() {
			wantErr = ledger.ErrNotFailed
		}
		if err := ledger.NewOperator(b.pool, "ann").Replay(b.t.Context(), j.id, "a test"); !errors.Is(err, wantErr) {
			rt.Fatalf("replay: %v, the model says %v", err, wantErr)
		}
		if wantErr == nil {
			j.outcome, j.attempts = queued, 0
		}
	}
}

// SetStatus freezes an account, opens it again or, rarely, closes it.
func (b *bank) SetStatus(rt *rapid.T) {
	a := b.account(rt, func(a *modelAccount) bool { return a.status != ledger.Closed })
	statuses := []ledger.AccountStatus{ledger.Open, ledger.Open, ledger.Frozen}
	if oneIn(rt, 16) {
		statuses = []ledger.AccountStatus{ledger.Closed}
	}
	status := rapid.SampledFrom(statuses).Draw(rt, "status")
	changed, err := ledger.NewOperator(b.pool, "ann").SetStatus(b.t.Context(), a.opening.Number, status, "a test")
	if err != nil || changed != (a.status != status) {
		rt.Fatalf("make it %s: changed %t, %v; the model has it %s", status, changed, err, a.status)
	}
	a.status = status
	b.touch(a)
}

// crimes are statements that break the ledger's rules. $1 is the account. The database refuses
// each of them where the account has a job in the state that it needs.
var crimes = map[string]struct{ sql, needs string }{
	"ChangeHistory":   {`UPDATE transactions SET amount = amount + 1 WHERE account_id = $1`, ""},
	"DeleteHistory":   {`DELETE FROM transactions WHERE account_id = $1`, ""},
	"DeleteQueued":    {`DELETE FROM jobs WHERE id IN (SELECT job_id FROM queue WHERE account_id = $1)`, "queued"},
	"DeleteFinished":  {`DELETE FROM jobs WHERE id IN (SELECT job_id FROM transactions WHERE account_id = $1)`, "succeeded"},
	"Dequeue":         {`DELETE FROM queue WHERE account_id = $1`, "queued"},
	"NegativeBalance": {`UPDATE accounts SET balance = -1, last_seq = last_seq + 1, last_at = last_at + interval '1 hour' WHERE id = $1`, ""},
	"BalanceByItself": {`UPDATE accounts SET balance = 12345 WHERE id = $1`, ""},
	"TimeGoesBack":    {`UPDATE accounts SET last_seq = last_seq + 1, last_at = last_at - interval '1 s' WHERE id = $1`, ""},
	"RecordTwice": {`INSERT INTO transactions (account_id, seq, amount, balance_after, created_at, job_id, position, type)
		SELECT account_id, seq + 1000, amount, balance_after, created_at + interval '1 day', job_id, position, type FROM transactions WHERE account_id = $1 AND job_id IS NOT NULL LIMIT 1`, "succeeded"},
	"RecordInPlace": {`INSERT INTO transactions (account_id, seq, amount, balance_after, created_at, job_id, position, type)
		SELECT account_id, seq, amount, balance_after, created_at + interval '1 day', gen_random_uuid(), position, type FROM transactions WHERE account_id = $1 AND job_id IS NOT NULL`, "succeeded"},
	"RequeueSucceeded": {`INSERT INTO queue SELECT account_id, position, job_id FROM transactions WHERE account_id = $1 AND job_id IS NOT NULL`, "succeeded"},
	"FailSucceeded":    {`INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'internal_error' FROM transactions WHERE account_id = $1 AND job_id IS NOT NULL`, "succeeded"},
	"RequeueRejected":  {`DELETE FROM rejections WHERE account_id = $1`, "rejected"},
	"ReplayByItself":   {`DELETE FROM failures WHERE account_id = $1`, "failed"},
	"StatusByItself":   {`UPDATE accounts SET status = (CASE status WHEN 'open' THEN 'frozen' ELSE 'open' END)::account_status WHERE id = $1`, ""},
	"RejectFailed":     {`INSERT INTO rejections SELECT account_id, position, job_id, finished_at, failure FROM failures WHERE account_id = $1`, "failed"},
	"ChangeRequest":    {`UPDATE jobs SET amount = 99999 WHERE id IN (SELECT job_id FROM queue WHERE account_id = $1)`, "queued"},
	"JumpTheQueue":     {`UPDATE queue SET position = -position WHERE account_id = $1`, "queued"},
	"ForgetAttempts":   {`UPDATE queue SET attempts = -1 WHERE account_id = $1`, "queued"},
}

// Crime tries to break the database's own rules.
func (b *bank) Crime(rt *rapid.T) {
	a := b.account(rt, func(*modelAccount) bool { return true })
	var names []string
	for name, crime := range crimes {
		if crime.needs == "" || slices.ContainsFunc(a.jobs, func(j *modelJob) bool { return strings.HasPrefix(j.outcome, crime.needs) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	name := rapid.SampledFrom(names).Draw(rt, "crime")
	if _, err := b.pool.Exec(b.t.Context(), crimes[name].sql, a.id); !isRefused(err) {
		rt.Fatalf("%s: got %v, want it refused", name, err)
	}
}

// readSQL returns all that the database holds of an account, in the model's format. The history
// is in the order of its times, which must be that of its seq.
const readSQL = `
	SELECT concat_ws(E'\n',
		format('%s balance %s seq %s', status, balance, last_seq),
		(SELECT string_agg(format('%s %s %s is %s attempts %s%s', id, type, amount, concat_ws(' ',
				status, 'seq', coalesce(seq::text, '-'), 'balance', coalesce(balance_after::text, '-'), 'failure', coalesce(failure, '-')),
				attempts, CASE WHEN finished_at < created_at THEN ' before it was accepted' END), E'\n' ORDER BY position)
			FROM (SELECT job_id FROM queue WHERE account_id = $1 UNION ALL SELECT job_id FROM transactions WHERE account_id = $1 UNION ALL
				SELECT job_id FROM rejections WHERE account_id = $1 UNION ALL SELECT job_id FROM failures WHERE account_id = $1) states
			JOIN job_states ON id = job_id),
		(SELECT string_agg(format('%s: %s %s makes %s', seq, type, amount, balance_after), E'\n' ORDER BY created_at)
			FROM transactions WHERE account_id = $1))
	FROM accounts WHERE id = $1`

// compareEvery is the number of steps between two comparisons: one costs as much as a small step,
// and no later step hides an error of an earlier one, except Replay.
const compareEvery = 8

// Check counts a step, and compares after every compareEvery steps. rapid calls it after each step.
func (b *bank) Check(rt *rapid.T) {
	if b.steps++; b.steps%compareEvery == 0 {
		b.compare(rt)
	}
}

func (b *bank) touch(a *modelAccount) {
	if !slices.Contains(b.touched, a) {
		b.touched = append(b.touched, a)
	}
}

// compare compares the accounts that were touched since the last comparison with the model.
func (b *bank) compare(rt *rapid.T) {
	for _, a := range b.touched {
		var got string
		if err := b.pool.QueryRow(b.t.Context(), readSQL, a.id).Scan(&got); err != nil {
			rt.Fatalf("read account: %v", err)
		}
		if want := a.String(); got != want {
			rt.Fatalf("account %d is\n%s\nthe model says\n%s", a.id, got, want)
		}
	}
	b.touched = b.touched[:0]
}

func (a *modelAccount) String() string {
	lines := []string{fmt.Sprintf("%s balance %d seq %d", a.status, a.balance, len(a.history))}
	for _, j := range a.jobs {
		lines = append(lines, fmt.Sprintf("%s %s %d is %s attempts %d", j.id, j.typ, j.amount, j.outcome, j.attempts))
	}
	return strings.Join(append(lines, a.history...), "\n")
}

// apply returns what ledger.Applier.Apply must return: the jobs that it finishes, and ErrRefused
// or, at a job where the connection is killed, errKilled.
func (a *modelAccount) apply(named *modelJob, limit int, kills func(*modelJob) bool) (applied []*modelJob, err error) {
	for _, j := range a.jobs {
		if len(applied) == limit {
			return applied, nil
		}
		if j.outcome == queued {
			if kills(j) && a.verdict(j) == "" {
				return applied, errKilled
			}
			if a.finish(j); j.outcome == queued {
				return applied, ledger.ErrRefused
			}
			applied = append(applied, j)
		}
		if j == named {
			return applied, nil
		}
	}
	return applied, nil
}

// oldestQueued returns the oldest queued job up to the named one, or nil.
func (a *modelAccount) oldestQueued(named *modelJob) *modelJob {
	for _, j := range a.jobs[:slices.Index(a.jobs, named)+1] {
		if j.outcome == queued {
			return j
		}
	}
	return nil
}

// refuses reports whether Postgres refuses the job for a reason of the job's own.
func (a *modelAccount) refuses(j *modelJob) bool {
	return a.broken && j.amount == refusedAmount && a.verdict(j) == ""
}

var errKilled = errors.New("connection killed")

// verdict returns why the bank rejects a job, or an empty string.
func (a *modelAccount) verdict(j *modelJob) string {
	switch {
	case a.status == ledger.Frozen:
		return ledger.AccountIsFrozen
	case a.status == ledger.Closed:
		return ledger.AccountIsClosed
	case j.typ == ledger.Withdrawal && a.balance < j.amount:
		return ledger.InsufficientFunds
	case j.typ == ledger.Deposit && a.balance > ledger.MaxAmount-j.amount:
		return ledger.BalanceLimitExceeded
	}
	return ""
}

// finish tries a queued job once. The job stays queued where Postgres refuses it and attempts
// remain.
func (a *modelAccount) finish(j *modelJob) {
	failure := a.verdict(j)
	switch {
	case failure != "":
		j.outcome, j.attempts = "rejected seq - balance - failure "+failure, 0
	case a.refuses(j):
		if j.attempts++; j.attempts == ledger.MaxAttempts {
			j.outcome = "failed seq - balance - failure " + ledger.InternalError
		}
	default:
		a.record(j.typ, j.amount)
		j.outcome, j.attempts = fmt.Sprintf("succeeded seq %d balance %d failure -", len(a.history), a.balance), 0
	}
}

func (a *modelAccount) record(typ ledger.EntryType, amount int64) {
	if typ == ledger.Withdrawal {
		a.balance -= amount
	} else {
		a.balance += amount
	}
	a.history = append(a.history, fmt.Sprintf("%d: %s %d makes %d", len(a.history)+1, typ, amount, a.balance))
}

func (j *modelJob) failed() bool { return strings.HasPrefix(j.outcome, "failed") }

func (a *modelAccount) failed() (jobs []*modelJob) {
	for _, j := range a.jobs {
		if j.failed() {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// check compares the jobs that Apply returned with the model's.
func check(rt *rapid.T, applied []ledger.Applied, want []*modelJob) {
	var got, wanted []string
	for _, job := range applied {
		got = append(got, fmt.Sprint(job.JobID, job.Type, job.Outcome))
		if job.FinishedAt.Before(job.CreatedAt) {
			rt.Fatalf("job %s finished before it was accepted", job.JobID)
		}
	}
	for _, j := range want {
		outcome, _, _ := strings.Cut(j.outcome, " ")
		wanted = append(wanted, fmt.Sprint(j.id, j.typ, outcome))
	}
	if !slices.Equal(got, wanted) {
		rt.Fatalf("applied\n%s\nthe model says\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
	}
}

// byPosition returns what was applied in the order of the account's jobs.
func byPosition(a *modelAccount, applied ...[]ledger.Applied) []ledger.Applied {
	all := slices.Concat(applied...)
	slices.SortStableFunc(all, func(x, y ledger.Applied) int {
		index := func(id uuid.UUID) int { return slices.IndexFunc(a.jobs, func(j *modelJob) bool { return j.id == id }) }
		return index(x.JobID) - index(y.JobID)
	})
	return all
}

// oneIn reports true once in n times, n a power of two, for a step that costs as much as n others.
// It draws booleans, since rapid draws the ends of a range more often.
func oneIn(rt *rapid.T, n int) bool {
	for ; n > 1; n /= 2 {
		if !rapid.Bool().Draw(rt, "one in two") {
			return false
		}
	}
	return true
}

// account draws the account that a step touches.
func (b *bank) account(rt *rapid.T, suits func(*modelAccount) bool) *modelAccount {
	var suitable []*modelAccount
	for _, a := range b.opened {
		if suits(a) {
			suitable = append(suitable, a)
		}
	}
	if len(suitable) == 0 {
		rt.Skip("no such account")
	}
	chosen := suitable[rapid.IntRange(0, len(suitable)-1).Draw(rt, "account")]
	b.touch(chosen)
	return chosen
}

// job draws a job of an account that has jobs.
func (b *bank) job(rt *rapid.T, suits func(*modelAccount) bool) (*modelAccount, *modelJob) {
	a := b.account(rt, suits)
	return a, a.jobs[rapid.IntRange(0, len(a.jobs)-1).Draw(rt, "job")]
}

func (b *bank) exec(rt *rapid.T, sql string, args ...any) {
	if _, err := b.pool.Exec(b.t.Context(), sql, args...); err != nil {
		rt.Fatalf("%s: %v", sql, err)
	}
}

// impatient applies on one connection, and knows its backend.
type impatient struct {
	pool *pgxpool.Pool
	pid  uint32 // of the connection's backend
}

func newImpatient(t testing.TB, like *pgxpool.Pool) *impatient {
	t.Helper()
	p := &impatient{}
	cfg := like.Config()
	cfg.MaxConns = 1
	cfg.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		p.pid = conn.PgConn().PID()
		return nil
	}
	var err error
	if p.pool, err = pgxpool.NewWithConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.pool.Close)
	return p
}

// apply applies with a timeout, and returns once Postgres is done too: a backend whose client has
// gone still runs what the client had sent.
func (p *impatient) apply(t testing.TB, named uuid.UUID, patience time.Duration) ([]ledger.Applied, error) {
	t.Helper()
	if err := p.pool.Ping(t.Context()); err != nil { // it is connected before the timeout starts
		t.Fatal(err)
	}
	pid := p.pid
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	applied, _, err := ledger.NewApplier(p.pool).Apply(ctx, named, 64)
	const goneSQL = `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND pid <> pg_backend_pid())`
	testenv.Eventually(t, "the backend of the cancelled apply to end", func() (gone bool) {
		if err := p.pool.QueryRow(t.Context(), goneSQL, pid).Scan(&gone); err != nil {
			t.Fatal(err)
		}
		return gone
	})
	return applied, err
}
