package job_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A closed account takes no new job. Its keys still answer with their jobs, and a request that it
// refused spends no key. A frozen account takes jobs as an open one does.
func TestAcceptByStatus(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account, other := ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)
	if _, _, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: "opening"}); err != nil {
		t.Fatal(err)
	}
	const maxQueued = 2
	a, notified := acceptor(t, pool, maxQueued)
	first, _, err := a.Accept(t.Context(), deposit(user, account, "open"))
	if err != nil {
		t.Fatal(err)
	}
	ledgertest.SetStatus(t, pool, account.Number, ledger.Frozen)
	second, replayed, err := a.Accept(t.Context(), deposit(user, account, "frozen"))
	if err != nil || replayed || notified.count(second.ID) != 1 {
		t.Errorf("accept on a frozen account: %+v, replayed %t, %v; notified %d times", second, replayed, err, notified.count(second.ID))
	}
	ledgertest.SetStatus(t, pool, account.Number, ledger.Closed) // its queue is full, too
	reused := deposit(user, account, "open")
	reused.Amount++
	for _, test := range []struct {
		name string
		req  job.Request
		id   uuid.UUID // of a replay
		want error
	}{
		{"Replayed", deposit(user, account, "open"), first.ID, nil},
		{"ErrAccountClosed", deposit(user, account, "new"), uuid.Nil, job.ErrAccountClosed},
		{"ErrAccountClosed/Again", deposit(user, account, "new"), uuid.Nil, job.ErrAccountClosed},
		{"ErrKeyReused", reused, uuid.Nil, job.ErrKeyReused},
		{"ErrKeyReused/Opening", deposit(user, account, "opening"), uuid.Nil, job.ErrKeyReused},
		{"ErrAccountNotFound", deposit(ledgertest.User(t, pool), account, "new"), uuid.Nil, job.ErrAccountNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, replayed, err := a.Accept(t.Context(), test.req)
			if !errors.Is(err, test.want) || got.ID != test.id || replayed != (test.want == nil) {
				t.Errorf("job %s, replayed %t, %v; want %s, %v", got.ID, replayed, err, test.id, test.want)
			}
		})
	}
	if _, replayed, err := a.Accept(t.Context(), deposit(user, other, "new")); err != nil || replayed {
		t.Errorf("the refused key on another account: replayed %t, %v", replayed, err)
	}
	ledgertest.SetStatus(t, pool, other.Number, ledger.Closed) // its queue has capacity for one more
	if got, _, err := a.Accept(t.Context(), deposit(user, other, "more")); !errors.Is(err, job.ErrAccountClosed) {
		t.Errorf("accept within the queue's capacity: %+v, %v; want ErrAccountClosed", got, err)
	}
	if applied, _, err := ledger.NewApplier(pool).Apply(t.Context(), second.ID, 10); err != nil || len(applied) != 2 || applied[0].Outcome != ledger.Rejected {
		t.Errorf("applied %+v, %v; want both rejected", applied, err)
	}
	archive(t, pool, soon(), 2)
	if again, replayed, err := a.Accept(t.Context(), deposit(user, account, "frozen")); err != nil || !replayed || again.ID != second.ID ||
		again.Status != job.Rejected || *again.Failure != ledger.AccountIsClosed {
		t.Errorf("an archived job by its key: %+v, replayed %t, %v", again, replayed, err)
	}
	ledgertest.Check(t, pool)
}

// Accepts race with the close of their account. Each is accepted, and then rejected, or refused;
// none is accepted that began after the close.
func TestAcceptWhileTheAccountIsClosed(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, _ := acceptor(t, pool, manyQueued)
	const clients, warm = 4, 40
	var group errgroup.Group
	var accepted, closed atomic.Int64
	ready := make(chan struct{})
	for client := range clients {
		group.Go(func() error {
			for i := 0; ; i++ {
				after := closed.Load() > 0
				_, _, err := a.Accept(t.Context(), deposit(user, account, fmt.Sprintf("%d-%d", client, i)))
				switch {
				case errors.Is(err, job.ErrAccountClosed):
					return nil
				case err != nil:
					return err
				case after:
					return errors.New("accepted after the close")
				case accepted.Add(1) == warm:
					close(ready)
				}
			}
		})
	}
	<-ready
	ledgertest.SetStatus(t, pool, account.Number, ledger.Closed)
	closed.Store(1)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var last uuid.UUID
	if err := pool.QueryRow(t.Context(), `SELECT id FROM jobs ORDER BY position DESC LIMIT 1`).Scan(&last); err != nil {
		t.Fatal(err)
	}
	applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), last, manyQueued)
	if err != nil || more || int64(len(applied)) != accepted.Load() {
		t.Errorf("applied %d of %d jobs, more %t, %v", len(applied), accepted.Load(), more, err)
	}
	for _, j := range applied {
		if j.Outcome != ledger.Rejected {
			t.Errorf("job %s is %s on a closed account", j.JobID, j.Outcome)
		}
	}
	ledgertest.Check(t, pool)
}

// A closed account takes a batch only where all of its jobs were accepted before.
func TestAcceptBatchByStatus(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, _ := acceptor(t, pool, manyQueued)
	batch := []job.Request{deposit(user, account, "one"), deposit(user, account, "two")}
	first, err := a.AcceptBatch(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	ledgertest.SetStatus(t, pool, account.Number, ledger.Closed)
	if again, err := a.AcceptBatch(t.Context(), batch); err != nil || len(again) != 2 || !again[1].Replayed || again[1].Job.ID != first[1].Job.ID {
		t.Errorf("the same batch: %+v, %v", again, err)
	}
	if got, err := a.AcceptBatch(t.Context(), append(batch, deposit(user, account, "three"))); !errors.Is(err, job.ErrAccountClosed) {
		t.Errorf("with a new job: %+v, %v; want ErrAccountClosed", got, err)
	}
	reused := deposit(user, account, "two")
	reused.Amount++
	if _, err := a.AcceptBatch(t.Context(), []job.Request{reused, deposit(user, account, "three")}); !errors.Is(err, job.ErrKeyReused) {
		t.Errorf("with a reused key: %v, want ErrKeyReused", err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 2 {
		t.Errorf("%d jobs, want 2", found.Jobs)
	}
}
