package job_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A notification names the origins of the jobs that the request has made, and of no other job.
func TestOrigins(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, notified := acceptor(t, pool, manyQueued)
	want := map[uuid.UUID]string{}

	one := deposit(user, account, "one")
	one.Origin = &job.Origin{Name: "first"}
	accepted, _, err := a.Accept(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	want[accepted.ID] = "first"
	one.Origin = &job.Origin{Name: "again"}
	if _, replayed, err := a.Accept(t.Context(), one); err != nil || !replayed {
		t.Fatalf("sent again: replayed %t, error %v", replayed, err)
	}
	if _, _, err := a.Accept(t.Context(), deposit(user, account, "none")); err != nil {
		t.Fatal(err)
	}

	requests := batch(user, account, "one", "two", "three")
	requests[0].Origin = &job.Origin{Name: "batch"}
	jobs, err := a.AcceptBatch(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range jobs[1:] {
		want[made.Job.ID] = "batch"
	}
	if got := notified.origins[account.ID]; !maps.Equal(got, want) {
		t.Errorf("the origins are %v, want %v", got, want)
	}
}

// Requests for two accounts may share an insert. The notification of each account names the origins of its own jobs only.
func TestOriginsOfTwoAccounts(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	accounts := []ledger.Account{ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)}
	a, notified := acceptor(t, pool, manyQueued)
	var (
		group  errgroup.Group
		mu     sync.Mutex // guards want and shared
		want   = map[int64]map[uuid.UUID]string{accounts[0].ID: {}, accounts[1].ID: {}}
		shared = 0 // requests of the largest insert
	)
	for i := range 100 * len(accounts) {
		account := accounts[i%len(accounts)]
		request := deposit(user, account, fmt.Sprint("key", i))
		request.Origin = &job.Origin{Name: request.Key, Inserted: func(_, _ time.Time, requests int) {
			mu.Lock()
			defer mu.Unlock()
			shared = max(shared, requests)
		}}
		group.Go(func() error {
			accepted, _, err := acceptWithRetry(t.Context(), a, request)
			mu.Lock()
			defer mu.Unlock()
			want[account.ID][accepted.ID] = request.Key
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if shared < len(accounts) {
		t.Errorf("the largest insert has %d requests, want several", shared)
	}
	if !maps.EqualFunc(notified.origins, want, maps.Equal) {
		t.Errorf("the origins are %v, want %v", notified.origins, want)
	}
}
