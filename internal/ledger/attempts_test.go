package ledger_test

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

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
	returned := map[uuid.UUID]int{}
	for attempt := 1; attempt < ledger.MaxAttempts; attempt++ {
		applied, more, err := applier.Apply(t.Context(), after, 64)
		for _, job := range applied {
			returned[job.JobID]++
		}
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
	if want := map[uuid.UUID]int{before: 1, beside: 1}; !maps.Equal(returned, want) {
		t.Errorf("the attempts returned the jobs %v, want %v", returned, want)
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
		ledgertest.Replay(t, pool, unlucky)
		apply(t, pool, after) // which is done already
		if got, want := readJob(t, pool, unlucky).String(), "succeeded seq 5 balance 990 failure -"; got != want {
			t.Errorf("replayed job is %s, want %s", got, want)
		}
		ledgertest.Check(t, pool)
	})
}

// A count of attempts that is out of reason does not stop the account: the refused job fails.
func TestApplyRefusedJobWithAWildCount(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 1000)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	unlucky := ledgertest.Job(t, pool, account, ledger.Deposit, 13)
	after := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	ledgertest.Exec(t, pool, `UPDATE queue SET attempts = 32767 WHERE job_id = $1`, unlucky)
	apply(t, pool, after)
	if one, other := readJob(t, pool, unlucky), readJob(t, pool, after); one.Status != "failed" || other.Status != "succeeded" {
		t.Errorf("the refused job is %s, the next one %s; want failed and succeeded", one, other)
	}
	ledgertest.Check(t, pool)
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
	replaying.Go(func() error { return ledger.NewOperator(pool, "ann").Replay(t.Context(), older, "a test") })
	testenv.Eventually(t, "the replay to wait for the account", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO operator_actions%')`
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
