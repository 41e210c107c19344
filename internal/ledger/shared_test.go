package ledger_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

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
	if len(applied) > 0 || len(remaining) > 0 || !slices.Equal(dueOf(troubled), due(ids)) {
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
			if len(applied) != 4*3 || len(remaining) > 0 || !slices.Equal(dueOf(troubled), due(ids[2:3])) || troubled[0].Err == nil {
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
		if len(remaining) > 0 || !slices.Equal(dueOf(troubled), due(ids)) {
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

// dueOf returns the jobs of the accounts that had an error.
func dueOf(troubled []ledger.Troubled) (all []ledger.Due) {
	for _, t := range troubled {
		all = append(all, t.Due)
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
