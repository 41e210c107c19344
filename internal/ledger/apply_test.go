package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// finished is what a test reads of a job.
type finished struct {
	Status       string
	Seq          *int64
	BalanceAfter *int64
	Failure      *string
	Attempts     int
}

func readJob(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) (f finished) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `SELECT status, seq, balance_after, failure, attempts FROM job_states WHERE id = $1`, id).
		Scan(&f.Status, &f.Seq, &f.BalanceAfter, &f.Failure, &f.Attempts)
	if err != nil {
		t.Fatalf("read job %s: %v", id, err)
	}
	return f
}

func value[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

func (f finished) String() string {
	return fmt.Sprintf("%s seq %s balance %s failure %s", f.Status, value(f.Seq), value(f.BalanceAfter), value(f.Failure))
}

// apply applies all queued jobs of an account up to the named one.
func apply(t testing.TB, pool *pgxpool.Pool, named uuid.UUID) []ledger.Applied {
	t.Helper()
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), named, 1000)
	if err != nil {
		t.Fatalf("apply %s: %v", named, err)
	}
	if more {
		t.Fatalf("apply %s: more, though the limit was not reached", named)
	}
	return applied
}

func TestApply(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	tests := []struct {
		name    string
		balance int64
		typ     ledger.EntryType
		amount  int64
		want    string
	}{
		{"Deposit", 0, ledger.Deposit, 100, "succeeded seq 1 balance 100 failure -"},
		{"WithdrawalToZero", 100, ledger.Withdrawal, 100, "succeeded seq 2 balance 0 failure -"},
		{"InsufficientFunds", 99, ledger.Withdrawal, 100, "rejected seq - balance - failure insufficient_funds"},
		{"DepositToTheLimit", 1, ledger.Deposit, ledger.MaxAmount - 1, "succeeded seq 2 balance 9007199254740991 failure -"},
		{"BalanceLimitExceeded", 1, ledger.Deposit, ledger.MaxAmount, "rejected seq - balance - failure balance_limit_exceeded"},
		{"FromTheLimitDown", ledger.MaxAmount, ledger.Withdrawal, ledger.MaxAmount, "succeeded seq 2 balance 0 failure -"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			account := ledgertest.Account(t, pool, user, test.balance)
			id := ledgertest.Job(t, pool, account, test.typ, test.amount)
			applied := apply(t, pool, id)
			if len(applied) != 1 || applied[0].JobID != id || applied[0].Type != test.typ {
				t.Errorf("applied %+v, want the one job", applied)
			}
			if got := readJob(t, pool, id); got.String() != test.want {
				t.Errorf("job is %s, want %s", got, test.want)
			}
			if more := apply(t, pool, id); len(more) != 0 {
				t.Errorf("a second apply applied %+v", more)
			}
		})
	}
	ledgertest.Check(t, pool)
}

func TestApplyUnknownJob(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	_, _, err := ledger.NewApplier(pool).Apply(t.Context(), uuid.New(), 1)
	if !errors.Is(err, ledger.ErrJobNotFound) {
		t.Errorf("got %v, want ErrJobNotFound", err)
	}
}

// An apply that finds all jobs done does not wait for the account's lock.
func TestApplyWithNothingToDo(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	applier := ledger.NewApplier(pool)
	if applied, _, err := applier.Apply(t.Context(), id, 64); len(applied) != 1 || err != nil {
		t.Fatalf("applied %d, %v", len(applied), err)
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // nothing is to be kept
	if _, err := holder.Exec(t.Context(), `SELECT FROM accounts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if applied, more, err := applier.Apply(t.Context(), id, 64); len(applied) > 0 || more || err != nil {
		t.Errorf("applied %d, more %t, %v; want nothing, and no more", len(applied), more, err)
	}
}

// Apply does not believe a read-only server, such as a standby, that a job does not exist or is
// done: the server may not have received the job, or its replay, yet.
func TestApplyOnAServerThatOnlyReads(t *testing.T) {
	t.Parallel()
	primary := testenv.Pool(t)
	done := ledgertest.Job(t, primary, ledgertest.Account(t, primary, ledgertest.User(t, primary), 0), ledger.Deposit, 1)
	apply(t, primary, done)
	config := primary.Config()
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for name, named := range map[string]uuid.UUID{"Unknown": uuid.New(), "Done": done} {
		_, more, err := ledger.NewApplier(pool).Apply(t.Context(), named, 64)
		if !more || !postgres.IsDown(err) || errors.Is(err, ledger.ErrJobNotFound) {
			t.Errorf("%s: more %t, %v; want Postgres to be down", name, more, err)
		}
	}
}

// Apply applies every job before the named one, in order, and no job after it.
func TestApplyInOrderUpToTheNamedJob(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	var ids []uuid.UUID
	for i := range 200 {
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, int64(i+1)))
	}
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[149], 100)
	if err != nil || !more {
		t.Fatalf("first apply: more %t, error %v; want more", more, err)
	}
	later, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[149], 100)
	if err != nil || more {
		t.Fatalf("second apply: more %t, error %v; want no more", more, err)
	}
	var order []uuid.UUID
	for _, job := range append(applied, later...) {
		order = append(order, job.JobID)
	}
	if !slices.Equal(order, ids[:150]) {
		t.Errorf("applied %d jobs in another order than accepted", len(order))
	}
	if late, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[149], 100); err != nil || more || len(late) > 0 {
		t.Errorf("apply of a finished job: applied %d, more %t, error %v; want nothing", len(late), more, err)
	}
	if got := readJob(t, pool, ids[150]); got.Status != "queued" {
		t.Errorf("the job after the named one is %s, want queued", got)
	}
	if found := ledgertest.Check(t, pool); found.Transactions != 150 {
		t.Errorf("%d transactions, want 150", found.Transactions)
	}
}

// An apply that waits for the account, and finds the named job done by then, does not apply
// the jobs behind it: another task names them.
func TestApplyNothingBehindTheNamedJob(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	first, behind := ledgertest.Job(t, pool, account, ledger.Deposit, 1), ledgertest.Job(t, pool, account, ledger.Deposit, 2)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it has ended by then
	if _, err := tx.Exec(t.Context(), ledger.Statements["apply"].SQL, first, ledger.MaxAmount, 0, true); err != nil {
		t.Fatal(err)
	}
	var waiting errgroup.Group
	waiting.Go(func() error {
		applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), first, 100)
		if err == nil && (more || len(applied) > 0) {
			err = fmt.Errorf("applied %+v, more %t; want nothing", applied, more)
		}
		return err
	})
	awaitWaiting(t, pool)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); err != nil {
		t.Error(err)
	}
	if got := readJob(t, pool, behind); got.Status != "queued" {
		t.Errorf("the job behind the named one is %s, want queued", got)
	}
	ledgertest.Check(t, pool)
}

// Many workers apply each job once, in the order of position, though several tasks name each
// job, in any order.
func TestApplyConcurrently(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.CountAttempts(t, pool)
	user := ledgertest.User(t, pool)
	const accounts, jobs = 3, 120
	var (
		ids   [accounts][]uuid.UUID
		mu    sync.Mutex // guards count
		count = map[uuid.UUID]int{}
	)
	var group errgroup.Group
	for a := range accounts {
		account := ledgertest.Account(t, pool, user, 50)
		for i := range jobs {
			typ := ledger.Deposit
			if i%3 != 0 {
				typ = ledger.Withdrawal
			}
			ids[a] = append(ids[a], ledgertest.Job(t, pool, account, typ, int64(7+i%11)))
		}
	}
	for worker := range 8 {
		group.Go(func() error {
			for i := range jobs * accounts {
				// Each worker goes through the jobs in another order.
				n := (i*(2*worker+7) + worker) % (jobs * accounts)
				applied, _, err := ledger.NewApplier(pool).Apply(t.Context(), ids[n%accounts][n/accounts], 10)
				if err != nil {
					return err
				}
				mu.Lock()
				for _, job := range applied {
					count[job.JobID]++
				}
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := ledgertest.Attempts(t, pool); n != 0 {
		t.Errorf("Postgres refused %d attempts: a worker applied without the account's lock", n)
	}
	for a := range accounts {
		balance, seq := int64(50), int64(1)
		for i, id := range ids[a] {
			if count[id] != 1 {
				t.Errorf("job %s was applied %d times", id, count[id])
			}
			want := model(&balance, &seq, i%3 == 0, int64(7+i%11))
			if got := readJob(t, pool, id); got.String() != want {
				t.Errorf("job %d of account %d is %s, want %s as from a single thread", i, a, got, want)
			}
		}
	}
	ledgertest.Check(t, pool)
}

// An apply that waited for the account's lock sees the jobs that were applied meanwhile: it
// applies none of them again, and reads the new balance.
func TestApplyAfterAWait(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		first ledger.EntryType
		want  []string
	}{
		{"Moved", ledger.Deposit, []string{
			"succeeded seq 2 balance 150 failure -", "succeeded seq 3 balance 50 failure -", "rejected seq - balance - failure insufficient_funds",
		}},
		{"Rejected", ledger.Withdrawal, []string{ // a rejection does not change the account's row
			"rejected seq - balance - failure insufficient_funds", "rejected seq - balance - failure insufficient_funds",
			"rejected seq - balance - failure insufficient_funds",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			ledgertest.CountAttempts(t, pool)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 50)
			ids := []uuid.UUID{
				ledgertest.Job(t, pool, account, test.first, 100),
				ledgertest.Job(t, pool, account, ledger.Withdrawal, 100),
				ledgertest.Job(t, pool, account, ledger.Withdrawal, 100),
			}
			other, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer other.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it is committed by then
			if _, err := other.Exec(t.Context(), ledger.Statements["apply"].SQL, ids[0], ledger.MaxAmount, 0, true); err != nil {
				t.Fatal(err)
			}
			var applied []ledger.Applied
			var group errgroup.Group
			group.Go(func() (err error) {
				applied, _, err = ledger.NewApplier(pool).Apply(t.Context(), ids[2], 10)
				return err
			})
			awaitWaiting(t, pool)
			if err := other.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := group.Wait(); err != nil || len(applied) != 2 {
				t.Errorf("applied %d jobs, %v; want the two that remained", len(applied), err)
			}
			for i, want := range test.want {
				if got := readJob(t, pool, ids[i]); got.String() != want {
					t.Errorf("job %d is %s, want %s", i, got, want)
				}
			}
			if n := ledgertest.Attempts(t, pool); n != 0 {
				t.Errorf("Postgres refused %d attempts", n)
			}
			ledgertest.Check(t, pool)
		})
	}
}

// An apply that waited for the account's lock sees also a job that was not committed when the wait
// began, though that job has the lower position: the two were accepted at the same time.
func TestApplyAfterAnUnseenJob(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.CountAttempts(t, pool)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 50)
	begin := func() pgx.Tx {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // it is committed by then
		return tx
	}
	run := func(tx pgx.Tx, sql string, args ...any) {
		t.Helper()
		if _, err := tx.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	accepting, other := begin(), begin()
	unseen := uuid.New()
	run(accepting, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT $1, id, user_id, 'deposit', 100, 'unseen' FROM accounts WHERE id = $2`, unseen, account.ID)
	seen := ledgertest.Job(t, pool, account, ledger.Withdrawal, 70)
	run(other, ledger.Statements["lock"].SQL, seen)
	var group errgroup.Group
	group.Go(func() error {
		_, _, err := ledger.NewApplier(pool).Apply(t.Context(), seen, 10)
		return err
	})
	awaitWaiting(t, pool)
	if err := accepting.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(other, ledger.Statements["apply"].SQL, unseen, ledger.MaxAmount, 0, true)
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	for id, want := range map[uuid.UUID]string{
		unseen: "succeeded seq 2 balance 150 failure -", seen: "succeeded seq 3 balance 80 failure -",
	} {
		if got := readJob(t, pool, id); got.String() != want {
			t.Errorf("job is %s, want %s", got, want)
		}
	}
	if n := ledgertest.Attempts(t, pool); n != 0 {
		t.Errorf("Postgres refused %d attempts", n)
	}
	ledgertest.Check(t, pool)
}

// Apply looks for the lowest position each time: a job that is committed late or replayed while
// a task is applied, with a lower position than the remaining jobs, is the next.
func TestApplyTakesTheLowestPositionEachTime(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	late := uuid.New()
	var position int64
	if err := pool.QueryRow(t.Context(), `SELECT nextval('job_positions')`).Scan(&position); err != nil {
		t.Fatal(err)
	}
	ledgertest.Exec(t, pool, fmt.Sprintf(`
		CREATE FUNCTION commit_late() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO jobs (id, position, account_id, user_id, type, amount, idempotency_key)
			SELECT '%s', %d, id, user_id, 'deposit', 100, 'late' FROM accounts;
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER commits_late AFTER INSERT ON transactions
			FOR EACH ROW WHEN (NEW.balance_after = 1) EXECUTE FUNCTION commit_late()`, late, position))
	var ids []uuid.UUID
	for range 3 {
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	}
	apply(t, pool, ids[2])
	for id, want := range map[uuid.UUID]string{
		ids[0]: "succeeded seq 1 balance 1 failure -", late: "succeeded seq 2 balance 101 failure -",
		ids[1]: "succeeded seq 3 balance 102 failure -", ids[2]: "succeeded seq 4 balance 103 failure -",
	} {
		if got := readJob(t, pool, id); got.String() != want {
			t.Errorf("job is %s, want %s", got, want)
		}
	}
	ledgertest.Check(t, pool)
}

// awaitWaiting waits until a session of the database waits for a lock.
func awaitWaiting(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	testenv.Eventually(t, "the apply to wait for the lock", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`
		err := pool.QueryRow(t.Context(), sql).Scan(&waits)
		return err == nil && waits
	})
}

// model applies a job to a balance and a seq as a single thread would, and returns its outcome.
func model(balance, seq *int64, deposit bool, amount int64) string {
	switch {
	case !deposit && *balance < amount:
		return "rejected seq - balance - failure insufficient_funds"
	case deposit && *balance > ledger.MaxAmount-amount:
		return "rejected seq - balance - failure balance_limit_exceeded"
	case deposit:
		*balance += amount
	default:
		*balance -= amount
	}
	*seq++
	return fmt.Sprintf("succeeded seq %d balance %d failure -", *seq, *balance)
}

// Apply does not return a job whose row it has read and whose commit it has not: here the
// connection dies between the two. Nor does it return the jobs before it in the batch: they are
// committed, but may not be flushed.
func TestApplyReturnsOnlyCommittedJobs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		amounts []int64 // of the account's jobs
	}{
		{"Alone", []int64{killedAmount}},
		{"FirstOfABatch", []int64{1, killedAmount, 2, 3}},
		{"LastOfABatch", []int64{1, 2, killedAmount}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			for _, sql := range faultSQL {
				ledgertest.Exec(t, pool, sql)
			}
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
			ledgertest.Exec(t, pool, `INSERT INTO faults VALUES ($1, $2, 'commit')`, account.ID, killedAmount)
			var ids []uuid.UUID
			for _, amount := range test.amounts {
				ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, amount))
			}
			before := slices.Index(test.amounts, killedAmount)
			applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[len(ids)-1], 64)
			alone := min(before, 1) // the first job is a batch of its own
			if err == nil || !more || len(applied) != alone {
				t.Errorf("returned %+v, more %t, %v before the commit", applied, more, err)
			}
			for i, id := range ids[before:] {
				if got := readJob(t, pool, id).String(); got != queued {
					t.Errorf("job %d is %s, want %s", before+i, got, queued)
				}
			}
			ledgertest.Exec(t, pool, `DELETE FROM faults`)
			apply(t, pool, ids[len(ids)-1])
			ledgertest.Check(t, pool)
		})
	}
}

// Apply does not return a job whose commit Postgres refuses. It returns the jobs before it in the batch.
func TestApplyReturnsNoJobWithARefusedCommit(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	for _, sql := range faultSQL {
		ledgertest.Exec(t, pool, sql)
	}
	const refused = 13
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	ledgertest.Exec(t, pool, `INSERT INTO faults VALUES ($1, $2, 'commit')`, account.ID, refused)
	var ids []uuid.UUID
	for _, amount := range []int64{1, 2, refused, 3} { // the first job is a batch of its own
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, amount))
	}
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[3], 64)
	if err == nil || !more || len(applied) != 2 || applied[0].JobID != ids[0] || applied[1].JobID != ids[1] {
		t.Errorf("applied %+v, more %t, %v; want the two jobs before the refused one", applied, more, err)
	}
	for _, id := range ids[2:] {
		if got := readJob(t, pool, id).String(); got != queued {
			t.Errorf("a job is %s, want %s", got, queued)
		}
	}
	ledgertest.Exec(t, pool, `DELETE FROM faults`)
	if applied := apply(t, pool, ids[3]); len(applied) != 2 {
		t.Errorf("applied %+v once nothing is refused, want two jobs", applied)
	}
	ledgertest.Check(t, pool)
}

// An account's time moves forwards only, and no attempt is spent, where the clocks that date its
// jobs are ahead or are set back.
func TestApplyTimeNeverGoesBack(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.CountAttempts(t, pool)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	var last string
	for _, clock := range []string{"1 hour", "0", "-1 hour", "1 day", "0"} {
		id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
		ledgertest.Unguarded(t, pool, `UPDATE jobs SET created_at = now() + '`+clock+`' WHERE id = '`+id.String()+`'`)
		for _, job := range apply(t, pool, id) {
			if job.FinishedAt.Before(job.CreatedAt) {
				t.Errorf("clock %s: finished at %v, accepted at %v", clock, job.FinishedAt, job.CreatedAt)
			}
			if at := job.FinishedAt.UTC().Format("2006-01-02 15:04:05.000000"); at <= last {
				t.Errorf("clock %s: finished at %s, after %s", clock, at, last)
			} else {
				last = at
			}
		}
	}
	if n := ledgertest.Attempts(t, pool); n != 0 {
		t.Errorf("Postgres refused %d attempts", n)
	}
	ledgertest.Check(t, pool)
}
