package ledger_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// setStatus sets an account's status, which must change it.
func setStatus(t testing.TB, pool *pgxpool.Pool, account ledger.Account, status ledger.AccountStatus) {
	t.Helper()
	changed, err := ledger.NewOperator(pool, "ann").SetStatus(t.Context(), account.Number, status, "a test")
	if err != nil || !changed {
		t.Fatalf("make it %s: changed %t, %v", status, changed, err)
	}
}

// Jobs of an account that is frozen or closed are rejected, whatever they are. An account that is
// open again goes on where it was.
func TestApplyByStatus(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	for _, step := range []struct {
		status  ledger.AccountStatus
		typ     ledger.EntryType
		amount  int64
		outcome string
	}{
		{ledger.Open, ledger.Deposit, 5, "succeeded seq 2 balance 105 failure -"},
		{ledger.Frozen, ledger.Deposit, 5, "rejected seq - balance - failure account_frozen"},
		{ledger.Frozen, ledger.Withdrawal, 1000, "rejected seq - balance - failure account_frozen"},
		{ledger.Open, ledger.Withdrawal, 5, "succeeded seq 3 balance 100 failure -"},
		{ledger.Frozen, ledger.Deposit, ledger.MaxAmount, "rejected seq - balance - failure account_frozen"},
		{ledger.Closed, ledger.Withdrawal, 5, "rejected seq - balance - failure account_closed"},
	} {
		if _, err := ledger.NewOperator(pool, "ann").SetStatus(t.Context(), account.Number, step.status, "a test"); err != nil {
			t.Fatal(err)
		}
		id := ledgertest.Job(t, pool, account, step.typ, step.amount)
		apply(t, pool, id)
		if got := readJob(t, pool, id).String(); got != step.outcome {
			t.Errorf("%s of %d while %s: %s, want %s", step.typ, step.amount, step.status, got, step.outcome)
		}
	}
	ledgertest.Check(t, pool)
}

// What was queued when the account was closed is rejected in the order of acceptance, in the
// middle of a batch too.
func TestCloseWithQueuedJobs(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	var ids []uuid.UUID
	for range 10 {
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	}
	apply(t, pool, ids[3])
	setStatus(t, pool, account, ledger.Closed)
	apply(t, pool, ids[9])
	for i, id := range ids {
		want := "rejected"
		if i <= 3 {
			want = "succeeded"
		}
		if got := readJob(t, pool, id); got.Status != want {
			t.Errorf("job %d is %s, want %s", i, got, want)
		}
	}
	ledgertest.Check(t, pool)
}

// Applies and an operator's actions go on at once on an account. Each job ends as the status at
// its time says: `worker verify` compares the times of all.
func TestStatusChangesWhileJobsAreApplied(t *testing.T) {
	t.Parallel()
	const jobs, rounds = 200, 20
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	var last uuid.UUID
	for range jobs {
		last = ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	}
	var group errgroup.Group
	for range 2 {
		group.Go(func() error {
			for more := true; more; {
				var err error
				if _, more, err = ledger.NewApplier(pool).Apply(t.Context(), last, 7); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		for i := range rounds {
			status := []ledger.AccountStatus{ledger.Frozen, ledger.Open}[i%2]
			if changed, err := ledger.NewOperator(pool, "ann").SetStatus(t.Context(), account.Number, status, "a test"); err != nil || !changed {
				return fmt.Errorf("%s: changed %t, %w", status, changed, err)
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	ledgertest.Check(t, pool)
}

// A freeze waits for the apply that has locked the account, and is dated after it. Each later apply
// sees the freeze.
func TestFreezeWaitsForAnApply(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	first, second := ledgertest.Job(t, pool, account, ledger.Deposit, 1), ledgertest.Job(t, pool, account, ledger.Deposit, 2)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // it is committed then
	if _, err := tx.Exec(t.Context(), `SELECT FROM accounts FOR NO KEY UPDATE`); err != nil {
		t.Fatal(err)
	}
	var freezing errgroup.Group
	freezing.Go(func() error {
		_, err := ledger.NewOperator(pool, "ann").SetStatus(t.Context(), account.Number, ledger.Frozen, "a test")
		return err
	})
	testenv.Eventually(t, "the freeze to wait for the account", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO operator_actions%')`
		return pool.QueryRow(t.Context(), sql).Scan(&waits) == nil && waits
	})
	if _, err := tx.Exec(t.Context(), `SELECT apply_job($1, $2, 0)`, first, ledger.MaxAmount); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := freezing.Wait(); err != nil {
		t.Fatal(err)
	}
	apply(t, pool, second)
	if got := readJob(t, pool, first); got.Status != "succeeded" {
		t.Errorf("the job that the freeze waited for is %s", got)
	}
	if got := readJob(t, pool, second); got.Status != "rejected" {
		t.Errorf("the job after the freeze is %s", got)
	}
	ledgertest.Check(t, pool)
}

// A status is set once. The person who repeats an action, because the answer was lost, learns that
// it is done, and no second row says so.
func TestSetStatus(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	operator := ledger.NewOperator(pool, "ann")
	for _, step := range []struct {
		number  string
		status  ledger.AccountStatus
		reason  string
		changed bool
		err     error
	}{
		{account.Number, ledger.Open, "nothing", false, nil},
		{account.Number, ledger.Frozen, "a court order", true, nil},
		{account.Number, ledger.Frozen, "again", false, nil},
		{account.Number, ledger.Open, "", false, ledger.ErrUnnamed},
		{account.Number, ledger.Open, strings.Repeat("x", 501), false, ledger.ErrUnnamed},
		{account.Number, ledger.Open, "the order was lifted", true, nil},
		{account.Number, ledger.Closed, "the client asked for it", true, nil},
		{account.Number, ledger.Closed, "again", false, nil},
		{account.Number, ledger.Open, "by mistake", false, ledger.ErrAccountClosed},
		{account.Number, ledger.Frozen, "by mistake", false, ledger.ErrAccountClosed},
		{"nowhere", ledger.Frozen, "x", false, ledger.ErrAccountNotFound},
	} {
		changed, err := operator.SetStatus(t.Context(), step.number, step.status, step.reason)
		if changed != step.changed || !errors.Is(err, step.err) {
			t.Errorf("%s %s: changed %t, %v; want %t, %v", step.status, step.number, changed, err, step.changed, step.err)
		}
	}
	if _, err := ledger.NewOperator(pool, "").SetStatus(t.Context(), account.Number, ledger.Closed, "x"); err != nil {
		t.Errorf("an action with nothing to change: %v", err)
	}
	view, err := operator.Account(t.Context(), account.Number)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, action := range view.Actions {
		said = append(said, fmt.Sprintf("%s %s: %s", action.Person, action.Action, action.Reason))
		if action.Role == "" || time.Since(action.At) > time.Hour {
			t.Errorf("%+v", action)
		}
	}
	want := []string{"ann close: the client asked for it", "ann unfreeze: the order was lifted", "ann freeze: a court order"}
	if !slices.Equal(said, want) || view.Status != ledger.Closed {
		t.Errorf("the account is %s by %q, want closed by %q", view.Status, said, want)
	}
	ledgertest.Check(t, pool)
}

// The times of actions and transactions rise, even where Postgres's clock goes back: what was
// before an action is dated before it, and what came after is dated after it.
func TestActionsAreLaterThanTheHistory(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	ledgertest.Unguarded(t, pool, `UPDATE transactions SET created_at = created_at + interval '1 hour'; UPDATE accounts SET last_at = last_at + interval '1 hour'`)
	setStatus(t, pool, account, ledger.Frozen)
	apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	setStatus(t, pool, account, ledger.Open)
	apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 2))
	setStatus(t, pool, account, ledger.Closed)
	const sql = `SELECT array_agg(what ORDER BY at) FROM (
		SELECT 'seq ' || seq AS what, created_at AS at FROM transactions UNION ALL SELECT action::text, at FROM operator_actions) all_of_them`
	var order []string
	if err := pool.QueryRow(t.Context(), sql).Scan(&order); err != nil {
		t.Fatal(err)
	}
	if want := []string{"seq 1", "freeze", "unfreeze", "seq 2", "close"}; !slices.Equal(order, want) {
		t.Errorf("the times make it %q, want %q", order, want)
	}
	ledgertest.Check(t, pool)
}

// A connection that dies before the commit of an action leaves neither the change nor its row.
func TestActionWithoutItsCommit(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `INSERT INTO operator_actions (account_id, action, person, reason) SELECT id, 'freeze', 'ann', 'x' FROM accounts`)
		if err != nil {
			return err
		}
		_, err = tx.Exec(t.Context(), `SELECT pg_terminate_backend(pg_backend_pid())`)
		return err
	})
	if err == nil {
		t.Fatal("the connection lives")
	}
	view, err := ledger.NewOperator(pool, "ann").Account(t.Context(), account.Number)
	if err != nil || view.Status != ledger.Open || len(view.Actions) > 0 {
		t.Errorf("%+v, %v; want an open account without an action", view, err)
	}
}

// A replay leaves its row, says what it can't replay, and replays the others.
func TestReplay(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	done := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	failed := ledgertest.Job(t, pool, account, ledger.Deposit, 13)
	for range ledger.MaxAttempts {
		_, _, _ = ledger.NewApplier(pool).Apply(t.Context(), failed, 64)
	}
	operator := ledger.NewOperator(pool, "ann")
	var list []ledger.FailedJob
	if err := operator.FailedJobs(t.Context(), func(job ledger.FailedJob) { list = append(list, job) }); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].ID != failed || *list[0].Account != account.Number || list[0].Attempts != ledger.MaxAttempts ||
		list[0].Failure != ledger.InternalError || list[0].Detail == nil || !strings.Contains(*list[0].Detail, `constraint "unlucky"`) {
		t.Errorf("the failed jobs are %+v", list)
	}
	for id, want := range map[uuid.UUID]error{done: ledger.ErrNotFailed, uuid.New(): ledger.ErrJobNotFound} {
		if err := operator.Replay(t.Context(), id, "x"); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if err := operator.Replay(t.Context(), failed, "the constraint is gone"); err != nil {
		t.Fatal(err)
	}
	if err := operator.Replay(t.Context(), failed, "again"); !errors.Is(err, ledger.ErrNotFailed) || !strings.Contains(err.Error(), "it is queued") {
		t.Errorf("a second replay: %v", err)
	}
	view, err := operator.Account(t.Context(), account.Number)
	if err != nil || len(view.Actions) != 1 || *view.Actions[0].JobID != failed || view.Queued != 1 || view.Oldest.ID != failed || view.Failed != 0 {
		t.Errorf("%+v, %v", view, err)
	}
	ledgertest.Check(t, pool)
}

// The overview names the transaction that has locked the account.
func TestOverviewOfALockedAccount(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	operator := ledger.NewOperator(pool, "ann")
	view, err := operator.Account(t.Context(), account.Number)
	if err != nil || view.Lock != nil || view.Oldest != nil || view.Queued != 0 {
		t.Errorf("%+v, %v", view, err)
	}
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // nothing is to be kept
	if _, err := holder.Exec(t.Context(), `SELECT FROM accounts FOR NO KEY UPDATE`); err != nil {
		t.Fatal(err)
	}
	view, err = operator.Account(t.Context(), account.Number)
	if err != nil || view.Lock == nil || view.Lock.PID != int(holder.Conn().PgConn().PID()) || view.Lock.State != "idle in transaction" {
		t.Errorf("%+v, %v", view.Lock, err)
	}
	if _, err := operator.Account(t.Context(), "nowhere"); !errors.Is(err, ledger.ErrAccountNotFound) {
		t.Errorf("%v, want ErrAccountNotFound", err)
	}
}

// If another rule refuses an action, SetStatus returns that rule's error. It must not look like the
// error for a closed account or a missing name.
func TestSetStatus_RefusedByAnotherRule(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	for _, code := range []string{"check_violation", "integrity_constraint_violation"} {
		ledgertest.Exec(t, pool, `CREATE OR REPLACE FUNCTION unlucky() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN RAISE 'unlucky' USING ERRCODE = '`+code+`'; END $$;
			CREATE OR REPLACE TRIGGER unlucky BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION unlucky()`)
		_, err := ledger.NewOperator(pool, "ann").SetStatus(t.Context(), account.Number, ledger.Frozen, "test")
		if err == nil || errors.Is(err, ledger.ErrAccountClosed) || errors.Is(err, ledger.ErrUnnamed) || !strings.Contains(err.Error(), "unlucky") {
			t.Errorf("%s: got %v", code, err)
		}
	}
}
