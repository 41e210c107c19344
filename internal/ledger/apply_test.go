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

// Without a connection ApplyShared returns every job as troubled, also where there are more jobs
// than are sent at once.
func TestApplySharedWithoutAConnection(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	var ids []uuid.UUID
	for range 40 {
		ids = append(ids, ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	applied, remaining, troubled := ledger.NewApplier(pool).ApplyShared(ctx, due(ids), 64)
	if len(applied) > 0 || len(remaining) > 0 || !slices.Equal(troubled, due(ids)) {
		t.Errorf("applied %d, %d remain, %d are troubled; want all %d troubled", len(applied), len(remaining), len(troubled), len(ids))
	}
	if applied, remaining, troubled := ledger.NewApplier(pool).ApplyShared(t.Context(), due(ids), 64); len(applied) != len(ids) || len(remaining)+len(troubled) > 0 {
		t.Errorf("applied %d of %d, %d remain, %d are troubled", len(applied), len(ids), len(remaining), len(troubled))
	}
}

// ApplyShared returns the job whose account is refused or locked as troubled. It applies the
// jobs of the other accounts in the same batch, and the connection stays usable.
func TestApplySharedBesideTrouble(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, trouble string
		kept          bool // held in an open transaction
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
			var ids []uuid.UUID
			for i := range 5 {
				account := ledgertest.Account(t, pool, user, 0)
				if i == 2 {
					ledgertest.Job(t, pool, account, ledger.Deposit, 13)
				}
				for range 3 {
					ids = append(ids[:i], ledgertest.Job(t, pool, account, ledger.Deposit, 1))
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
			defer holder.Rollback(t.Context()) //nolint:errcheck // it has ended by then
			if _, err := holder.Exec(t.Context(), test.trouble); err != nil {
				t.Fatal(err)
			}
			if !test.kept {
				if err := holder.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			before := backend(t, single)
			applied, remaining, troubled := ledger.NewApplier(single).ApplyShared(t.Context(), due(ids), 64)
			if len(applied) != 4*3 || len(remaining) > 0 || !slices.Equal(troubled, due(ids[2:3])) {
				t.Errorf("applied %d, %d remain, %v are troubled; want 12, none, and %s", len(applied), len(remaining), troubled, ids[2])
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

// Where the connection is lost on the way, ApplyShared returns every job of the batch as
// troubled: without the last commit, the jobs applied before may not be flushed.
func TestApplySharedLosesItsConnection(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	var accounts []ledger.Account
	var ids []uuid.UUID
	for range 3 {
		account := ledgertest.Account(t, pool, user, 0)
		accounts = append(accounts, account)
		ledgertest.Job(t, pool, account, ledger.Deposit, 1)
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // it has ended by then
	if _, err := holder.Exec(t.Context(), `SELECT FROM accounts WHERE id = $1 FOR UPDATE`, accounts[1].ID); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.Go(func() error {
		_, remaining, troubled := ledger.NewApplier(pool).ApplyShared(t.Context(), due(ids), 64)
		if len(remaining) > 0 || !slices.Equal(troubled, due(ids)) {
			return fmt.Errorf("%v remain, %v are troubled; want none, and all of %v", remaining, troubled, ids)
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
	_, remaining, troubled := ledger.NewApplier(pool).ApplyShared(t.Context(), due(ids), 64)
	if len(remaining)+len(troubled) > 0 {
		t.Errorf("later %d remain, and %d are troubled", len(remaining), len(troubled))
	}
	ledgertest.Check(t, pool)
	for _, id := range ids {
		if got := readJob(t, pool, id); got.Status != "succeeded" || *got.Seq != 2 {
			t.Errorf("job %s: %+v", id, got)
		}
	}
}

// due says that each job's account has one job to apply.
func due(ids []uuid.UUID) (all []ledger.Due) {
	for _, id := range ids {
		all = append(all, ledger.Due{JobID: id, Jobs: 1})
	}
	return all
}

// backend returns the process id of the server process behind the pool's one connection.
func backend(t *testing.T, single *pgxpool.Pool) (pid int) {
	t.Helper()
	if err := single.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
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

// Jobs of an account that does not exist, as after a bad restore, end failed. They do not stay
// queued for ever, and an operator replays them.
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
			t.Fatalf("attempt %d: the job before it is %s after %d attempts, undone by another job's fault", attempt, got, got.Attempts)
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
		apply(t, pool, after) // which is done already
		if got, want := readJob(t, pool, unlucky).String(), "succeeded seq 5 balance 990 failure -"; got != want {
			t.Errorf("replayed job is %s, want %s", got, want)
		}
		ledgertest.Check(t, pool)
	})
}

// An error that is not the job's fault spends no attempt: here Postgres does not grant a lock in
// time, before the attempt is counted or after.
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
			defer holder.Rollback(t.Context()) //nolint:errcheck // it has ended by then
			if _, err := holder.Exec(t.Context(), test.lock); err != nil {
				t.Fatal(err)
			}
			for range ledger.MaxAttempts + 1 {
				if _, _, err := ledger.NewApplier(impatient).Apply(t.Context(), id, 64); err == nil || errors.Is(err, ledger.ErrRefused) {
					t.Fatalf("while the lock is held: %v, want the lock timeout", err)
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

// A replay of an older job waits while the last attempt of another job is under way: the tried
// job ends failed, and the older one is queued.
func TestApplyFailsTheJobThatWasTried(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount NOT IN (12, 13))`)
	older := ledgertest.Job(t, pool, account, ledger.Deposit, 12)
	tried := ledgertest.Job(t, pool, account, ledger.Deposit, 13)
	applier := ledger.NewApplier(pool)
	for range 2*ledger.MaxAttempts - 2 { // all attempts of the older job, and all but one of the other
		_, _, _ = applier.Apply(t.Context(), tried, 64)
	}
	if got := readJob(t, pool, tried); got.Status != "queued" || got.Attempts != ledger.MaxAttempts-1 {
		t.Fatalf("job is %s after %d attempts, want queued, before its last", got, got.Attempts)
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // it has ended by then
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
