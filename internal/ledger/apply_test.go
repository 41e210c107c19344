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

func apply(t testing.TB, pool *pgxpool.Pool, ticket uuid.UUID) []ledger.Applied {
	t.Helper()
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), ticket, 1000)
	if err != nil {
		t.Fatalf("apply %s: %v", ticket, err)
	}
	if more {
		t.Fatalf("apply %s: more, though the limit was not reached", ticket)
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
		entry   ledger.EntryType
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
			id := ledgertest.Job(t, pool, account, test.entry, test.amount)
			applied := apply(t, pool, id)
			if len(applied) != 1 || applied[0].JobID != id || applied[0].Type != test.entry {
				t.Errorf("applied %+v, want the one job", applied)
			}
			if got := readJob(t, pool, id); got.String() != test.want {
				t.Errorf("job is %s, want %s", got, test.want)
			}
			if again := apply(t, pool, id); len(again) != 0 {
				t.Errorf("a second ticket applied %+v", again)
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

// Tickets that share flushes are all told of when there is nobody to ask, more of them
// than one flush has, too.
func TestApplySharedWithoutAConnection(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	var tickets []uuid.UUID
	for range 40 {
		tickets = append(tickets, ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	applied, rest, troubled := ledger.NewApplier(pool).ApplyShared(ctx, one(tickets), 64)
	if len(applied) > 0 || len(rest) > 0 || !slices.Equal(troubled, one(tickets)) {
		t.Errorf("applied %d, %d need another turn, %d are in trouble; want all %d in trouble", len(applied), len(rest), len(troubled), len(tickets))
	}
	if applied, rest, troubled := ledger.NewApplier(pool).ApplyShared(t.Context(), one(tickets), 64); len(applied) != len(tickets) || len(rest)+len(troubled) > 0 {
		t.Errorf("applied %d of %d, %d need another turn, %d are in trouble", len(applied), len(tickets), len(rest), len(troubled))
	}
}

// Of tickets that share flushes the one whose account is in trouble, refused or locked,
// is told of. The others lose nothing by it, and the connection is good for more.
func TestApplySharedBesideTrouble(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, trouble string
		kept          bool // until it is over with the transaction
	}{
		{"Refused", `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`, false},
		{"Locked", `SELECT FROM accounts WHERE id = (SELECT account_id FROM jobs WHERE amount = 13) FOR UPDATE`, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			ledgertest.CountAttempts(t, pool)
			user := ledgertest.User(t, pool)
			var tickets []uuid.UUID
			for i := range 5 {
				account := ledgertest.Account(t, pool, user, 0)
				if i == 2 {
					ledgertest.Job(t, pool, account, ledger.Deposit, 13)
				}
				for range 3 {
					tickets = append(tickets[:i], ledgertest.Job(t, pool, account, ledger.Deposit, 1))
				}
			}
			config := pool.Config()
			config.MaxConns = 1
			config.ConnConfig.RuntimeParams["lock_timeout"] = "50"
			single, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer single.Close()
			holder, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(t.Context()) //nolint:errcheck // it is over by then
			if _, err := holder.Exec(t.Context(), test.trouble); err != nil {
				t.Fatal(err)
			}
			if !test.kept {
				if err := holder.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			before := backend(t, single)
			applied, rest, troubled := ledger.NewApplier(single).ApplyShared(t.Context(), one(tickets), 64)
			if len(applied) != 4*3 || len(rest) > 0 || !slices.Equal(troubled, one(tickets[2:3])) {
				t.Errorf("applied %d, %d need another turn, in trouble are %v; want 12, none, and %s", len(applied), len(rest), troubled, tickets[2])
			}
			if n := ledgertest.Attempts(t, pool); n != 0 {
				t.Errorf("%d attempts are counted; Apply counts them", n)
			}
			if after := backend(t, single); after != before {
				t.Error("the connection was lost")
			}
		})
	}
}

// Where the connection is lost on the way, every job of the batch is told of: those that were
// applied before may be lost with the flush that did not come.
func TestApplySharedLosesItsConnection(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	var accounts []ledger.Account
	var tickets []uuid.UUID
	for range 3 {
		account := ledgertest.Account(t, pool, user, 0)
		accounts = append(accounts, account)
		ledgertest.Job(t, pool, account, ledger.Deposit, 1)
		tickets = append(tickets, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // it is over by then
	if _, err := holder.Exec(t.Context(), `SELECT FROM accounts WHERE id = $1 FOR UPDATE`, accounts[1].ID); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.Go(func() error {
		_, rest, troubled := ledger.NewApplier(pool).ApplyShared(t.Context(), one(tickets), 64)
		if len(rest) > 0 || !slices.Equal(troubled, one(tickets)) {
			return fmt.Errorf("%v need another turn, %v are in trouble; want none, and all of %v", rest, troubled, tickets)
		}
		return nil
	})
	testenv.Eventually(t, "the second account's apply to be ended", func() bool {
		const sql = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`
		tag, err := pool.Exec(t.Context(), sql)
		return err == nil && tag.RowsAffected() > 0
	})
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, rest, troubled := ledger.NewApplier(pool).ApplyShared(t.Context(), one(tickets), 64)
	if len(rest)+len(troubled) > 0 {
		t.Errorf("later %d need another turn, and %d are in trouble", len(rest), len(troubled))
	}
	ledgertest.Check(t, pool)
	for _, ticket := range tickets {
		if got := readJob(t, pool, ticket); got.Status != "succeeded" || *got.Seq != 2 {
			t.Errorf("job %s: %+v", ticket, got)
		}
	}
}

// one expects one job for each ticket.
func one(tickets []uuid.UUID) (due []ledger.Due) {
	for _, id := range tickets {
		due = append(due, ledger.Due{JobID: id, Jobs: 1})
	}
	return due
}

// backend is the process behind the pool's one connection.
func backend(t *testing.T, single *pgxpool.Pool) (pid int) {
	t.Helper()
	if err := single.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// A ticket that comes when all is done waits for nobody who has the account's lock.
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

// A server that only reads, a standby perhaps, does not say of a job that there is none, or
// that it is done: the job, or its replay, may be on its way to it.
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
	for name, ticket := range map[string]uuid.UUID{"Unknown": uuid.New(), "Done": done} {
		_, more, err := ledger.NewApplier(pool).Apply(t.Context(), ticket, 64)
		if !more || !postgres.IsDown(err) || errors.Is(err, ledger.ErrJobNotFound) {
			t.Errorf("%s: more %t, %v; want Postgres to be down", name, more, err)
		}
	}
}

// An account that is not there, as a bad restore may leave one, holds nobody up for ever:
// its jobs end failed, and an operator replays them.
func TestApplyWithoutAnAccount(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	ledgertest.Unguarded(t, pool, `DELETE FROM accounts`)
	for range ledger.MaxAttempts - 1 {
		applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), id, 64)
		if len(applied) > 0 || !more || !errors.Is(err, ledger.ErrRefused) {
			t.Errorf("applied %d, more %t, %v; want nothing, and ErrRefused", len(applied), more, err)
		}
	}
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), id, 64)
	if len(applied) != 1 || more || err != nil {
		t.Errorf("applied %d, more %t, %v; want the job, failed", len(applied), more, err)
	}
	if got, want := readJob(t, pool, id).String(), "failed seq - balance - failure internal_error"; got != want {
		t.Errorf("job is %s, want %s", got, want)
	}
}

// A ticket applies everything before its job, in order, and nothing after it.
func TestApplyInOrderUpToTheTicket(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	var ids []uuid.UUID
	for i := range 200 {
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, int64(i+1)))
	}
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[149], 100)
	if err != nil || !more {
		t.Fatalf("first turn: more %t, error %v; want more", more, err)
	}
	rest, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[149], 100)
	if err != nil || more {
		t.Fatalf("second turn: more %t, error %v; want no more", more, err)
	}
	var order []uuid.UUID
	for _, job := range append(applied, rest...) {
		order = append(order, job.JobID)
	}
	if !slices.Equal(order, ids[:150]) {
		t.Errorf("applied %d jobs in another order than accepted", len(order))
	}
	if late, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[149], 100); err != nil || more || len(late) > 0 {
		t.Errorf("a ticket of a finished job: applied %d, more %t, error %v; want nothing", len(late), more, err)
	}
	if got := readJob(t, pool, ids[150]); got.Status != "queued" {
		t.Errorf("the job after the ticket's is %s, want queued", got)
	}
	if found := ledgertest.Check(t, pool); found.Transactions != 150 {
		t.Errorf("%d transactions, want 150", found.Transactions)
	}
}

// A ticket that waits for the account, and finds its own job done by then, leaves the
// jobs behind it to their own.
func TestApplyNothingBehindTheTicket(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	first, behind := ledgertest.Job(t, pool, account, ledger.Deposit, 1), ledgertest.Job(t, pool, account, ledger.Deposit, 2)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it is over by then
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
		t.Errorf("the job behind the ticket's is %s, want queued", got)
	}
	ledgertest.Check(t, pool)
}

// Many workers with many tickets, doubled and in any order, apply each job
// once, in the order of position.
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
			entry := ledger.Deposit
			if i%3 != 0 {
				entry = ledger.Withdrawal
			}
			ids[a] = append(ids[a], ledgertest.Job(t, pool, account, entry, int64(7+i%11)))
		}
	}
	for worker := range 8 {
		group.Go(func() error {
			for i := range jobs * accounts {
				// Each worker walks through the tickets in another order.
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
		t.Errorf("Postgres refused %d attempts: somebody applied without the account's lock", n)
	}
	for a := range accounts {
		balance, seq := int64(50), int64(1)
		for i, id := range ids[a] {
			if count[id] != 1 {
				t.Errorf("job %s was applied %d times", id, count[id])
			}
			want := model(&balance, &seq, i%3 == 0, int64(7+i%11))
			if got := readJob(t, pool, id); got.String() != want {
				t.Errorf("job %d of account %d is %s, a single thread makes it %s", i, a, got, want)
			}
		}
	}
	ledgertest.Check(t, pool)
}

// An apply that waited for the account's lock goes by what was applied meanwhile: it
// takes no job again, and reads no old balance.
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
		{"Rejected", ledger.Withdrawal, []string{ // which leaves the account's row as it was
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
				t.Errorf("applied %d jobs, %v; want the two that were left", len(applied), err)
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

// The same where the job that was applied meanwhile was not even accepted when the wait
// began, though it is the older one: the two were accepted at the same time.
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

// The lowest position is taken each time: a job that comes up before those that a
// ticket has brought on, committed late or replayed, is the next.
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

// awaitWaiting waits until somebody waits for a lock.
func awaitWaiting(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	testenv.Eventually(t, "the apply to wait for the lock", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`
		err := pool.QueryRow(t.Context(), sql).Scan(&waits)
		return err == nil && waits
	})
}

// model is the bank with a single thread.
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

// A job that Postgres refuses for a reason of its own ends failed after
// MaxAttempts, and its account goes on.
func TestApplyRefusedJob(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 1000)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	before := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	beside := ledgertest.Job(t, pool, account, ledger.Deposit, 4) // shares a round trip with the next
	unlucky := ledgertest.Job(t, pool, account, ledger.Withdrawal, 13)
	after := ledgertest.Job(t, pool, account, ledger.Withdrawal, 2)
	applier := ledger.NewApplier(pool)
	for attempt := 1; attempt < ledger.MaxAttempts; attempt++ {
		_, more, err := applier.Apply(t.Context(), after, 64)
		if !errors.Is(err, ledger.ErrRefused) || !more {
			t.Fatalf("attempt %d: more %t, error %v; want ErrRefused", attempt, more, err)
		}
		if got := readJob(t, pool, unlucky); got.Status != "queued" || got.Attempts != attempt {
			t.Fatalf("attempt %d: job is %s after %d attempts", attempt, got, got.Attempts)
		}
		if got := readJob(t, pool, beside); got.Status != "succeeded" || got.Attempts != 0 {
			t.Fatalf("attempt %d: the job before it is %s after %d attempts, undone by another's fault", attempt, got, got.Attempts)
		}
		if got := readJob(t, pool, after); got.Status != "queued" {
			t.Fatalf("attempt %d: the job behind is %s, out of order", attempt, got)
		}
	}
	applied := apply(t, pool, after)
	if len(applied) != 2 || applied[0].Outcome != ledger.Failed || applied[1].Outcome != ledger.Succeeded {
		t.Errorf("last attempt applied %+v, want a failure and a success", applied)
	}
	for id, want := range map[uuid.UUID]string{
		before:  "succeeded seq 2 balance 1001 failure -",
		beside:  "succeeded seq 3 balance 1005 failure -",
		unlucky: "failed seq - balance - failure internal_error",
		after:   "succeeded seq 4 balance 1003 failure -",
	} {
		if got := readJob(t, pool, id); got.String() != want {
			t.Errorf("job is %s, want %s", got, want)
		}
	}
	ledgertest.Check(t, pool)

	t.Run("Replay", func(t *testing.T) {
		ledgertest.Exec(t, pool, `ALTER TABLE transactions DROP CONSTRAINT unlucky`)
		if err := applier.Replay(t.Context(), []uuid.UUID{unlucky, before}); !errors.Is(err, ledger.ErrNotFailed) {
			t.Fatalf("replay of a succeeded job: %v, want ErrNotFailed", err)
		}
		if got := readJob(t, pool, unlucky); got.Status != "failed" {
			t.Fatalf("half a replay was done: %s", got)
		}
		if err := applier.Replay(t.Context(), []uuid.UUID{unlucky}); err != nil {
			t.Fatal(err)
		}
		apply(t, pool, after) // a ticket whose own job is done
		if got, want := readJob(t, pool, unlucky).String(), "succeeded seq 5 balance 990 failure -"; got != want {
			t.Errorf("replayed job is %s, want %s", got, want)
		}
		ledgertest.Check(t, pool)
	})
}

// Trouble of Postgres's own spends no attempt: here a lock that is not granted
// in time, before the attempt is counted or after.
func TestApplySpendsNoAttemptOnPostgresTrouble(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, lock string }{
		{"AccountLocked", `SELECT FROM accounts FOR UPDATE`},
		{"HistoryLocked", `LOCK TABLE transactions IN SHARE MODE`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 1000)
			id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
			config := pool.Config()
			config.ConnConfig.RuntimeParams["lock_timeout"] = "50"
			impatient, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer impatient.Close()
			holder, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(t.Context()) //nolint:errcheck // it is over by then
			if _, err := holder.Exec(t.Context(), test.lock); err != nil {
				t.Fatal(err)
			}
			for range ledger.MaxAttempts + 1 {
				if _, _, err := ledger.NewApplier(impatient).Apply(t.Context(), id, 64); err == nil || errors.Is(err, ledger.ErrRefused) {
					t.Fatalf("under another's lock: %v, want Postgres's own error", err)
				}
			}
			if err := holder.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := readJob(t, pool, id); got.Attempts != 0 || got.Status != "queued" {
				t.Errorf("job is %s after %d attempts, want queued and none", got, got.Attempts)
			}
			apply(t, pool, id)
			ledgertest.Check(t, pool)
		})
	}
}

// A replay that would put an older job in front, while the last attempt of another is under
// way, waits for that: the job that was tried ends failed, and the older one is queued.
func TestApplyFailsTheJobThatWasTried(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount NOT IN (12, 13))`)
	older := ledgertest.Job(t, pool, account, ledger.Deposit, 12)
	tried := ledgertest.Job(t, pool, account, ledger.Deposit, 13)
	applier := ledger.NewApplier(pool)
	for range 2*ledger.MaxAttempts - 2 { // the older one's, and all but one of the other's
		_, _, _ = applier.Apply(t.Context(), tried, 64)
	}
	if got := readJob(t, pool, tried); got.Status != "queued" || got.Attempts != ledger.MaxAttempts-1 {
		t.Fatalf("job is %s after %d attempts, want queued, before its last", got, got.Attempts)
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // it is over by then
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(13)`); err != nil {
		t.Fatal(err)
	}
	// The last attempt waits after its count, before Postgres refuses it.
	ledgertest.Exec(t, pool, fmt.Sprintf(`
		CREATE FUNCTION wait_at_last() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT attempts FROM queue WHERE job_id = NEW.job_id) = %d THEN
				PERFORM pg_advisory_xact_lock(13);
			END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER a_wait_at_last BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION wait_at_last();`, ledger.MaxAttempts))
	var applied []ledger.Applied
	var group errgroup.Group
	group.Go(func() (err error) {
		applied, _, err = applier.Apply(t.Context(), tried, 64)
		return err
	})
	awaitWaiting(t, pool)
	var replaying errgroup.Group
	replaying.Go(func() error { return applier.Replay(t.Context(), []uuid.UUID{older}) })
	testenv.Eventually(t, "the replay to wait for the account", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%DELETE FROM failures%')`
		return pool.QueryRow(t.Context(), sql).Scan(&waits) == nil && waits
	})
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := replaying.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(applied) != 1 || applied[0].JobID != tried || applied[0].Outcome != ledger.Failed {
		t.Errorf("applied %+v, want the tried job failed", applied)
	}
	if got := readJob(t, pool, tried); got.Status != "failed" {
		t.Errorf("the tried job is %s, want failed", got)
	}
	if got := readJob(t, pool, older); got.Status != "queued" || got.Attempts != 0 {
		t.Errorf("the replayed job is %s after %d attempts, want queued and none", got, got.Attempts)
	}
}
