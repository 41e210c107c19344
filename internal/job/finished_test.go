package job_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Finished returns the finished jobs of their owners, as Job does, and writes nothing where there
// is none.
func TestFinished(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user, other := ledgertest.User(t, pool), ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	succeeded, rejected := ledgertest.Job(t, pool, account, ledger.Deposit, 1), ledgertest.Job(t, pool, account, ledger.Withdrawal, 5)
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), rejected, 2); err != nil {
		t.Fatal(err)
	}
	queued := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	failed := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	ledgertest.Exec(t, pool, `INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'internal_error' FROM queue WHERE job_id = $1`, failed)
	reader := job.NewReader(pool)
	find := func(userID uuid.UUID, ids ...uuid.UUID) (found []job.OwnedJob) {
		t.Helper()
		var jobs []job.Owned
		for _, id := range ids {
			jobs = append(jobs, job.Owned{UserID: userID, ID: id})
		}
		found, err := reader.Finished(t.Context(), jobs)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	found := find(user, succeeded, queued, rejected, failed, uuid.New())
	var ids []uuid.UUID
	for _, got := range found {
		ids = append(ids, got.ID)
		want, err := reader.Job(t.Context(), user, got.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.UserID != user || got.Status != want.Status || got.Position != want.Position || !got.FinishedAt.Equal(*want.FinishedAt) {
			t.Errorf("got %v, want %v", got.Job, want)
		}
	}
	if want := []uuid.UUID{succeeded, rejected, failed}; !slices.Equal(ids, want) {
		t.Errorf("found %v, want %v", ids, want)
	}
	if found := find(other, succeeded, rejected, failed); len(found) != 0 {
		t.Errorf("another user's: %v", found)
	}

	var before, after uint64
	const sql = `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`
	if err := pool.QueryRow(t.Context(), sql).Scan(&before); err != nil {
		t.Fatal(err)
	}
	find(user, queued)
	find(other, succeeded)
	if err := pool.QueryRow(t.Context(), sql).Scan(&after); err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("%d transactions wrote something", after-before)
	}
}

// A job that moves to the archive while a request waits for it is found there, by its owner alone.
func TestFinished_Archived(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user, other := ledgertest.User(t, pool), ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	archive(t, pool, soon(), 1)
	reader := job.NewReader(pool)
	found, err := reader.Finished(t.Context(), []job.Owned{{UserID: other, ID: id}, {UserID: user, ID: id}})
	want, readErr := reader.Job(t.Context(), user, id)
	if err != nil || readErr != nil || len(found) != 1 || found[0].UserID != user || inFull(t, found[0].Job) != inFull(t, want) {
		t.Errorf("found %v, %v; want %v, %v", found, err, want, readErr)
	}
}

// While a standby is away, no end is returned that it does not have.
func TestFinished_Confirms(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL(), Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	user := ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	back := testenv.AwayStandby(t, server.URL())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if found, err := job.NewReader(pool).Finished(ctx, []job.Owned{{UserID: user, ID: id}}); err == nil {
		t.Errorf("found %v", found)
	}
	back()
}
