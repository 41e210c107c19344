package job_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

const (
	manyQueued = 1000

	// patient is the time limit of an accept: a busy machine may need longer than the product's.
	patient = time.Minute
)

// notifications counts how often each job was notified.
type notifications struct {
	mu      sync.Mutex        // guards the fields below
	jobs    map[uuid.UUID]int // by id
	last    notification
	origins map[int64]map[uuid.UUID]string // by account and job
}

type notification struct {
	accountID, position int64
	jobID               uuid.UUID
	jobs                int
}

func (n *notifications) Notify(accountID, position int64, jobID uuid.UUID, jobs int, origins map[uuid.UUID]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.jobs[jobID]++
	n.last = notification{accountID, position, jobID, jobs}
	if n.origins[accountID] == nil {
		n.origins[accountID] = map[uuid.UUID]string{}
	}
	maps.Copy(n.origins[accountID], origins)
}

func (n *notifications) count(jobID uuid.UUID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.jobs[jobID]
}

// acceptor runs until the test ends.
func acceptor(t *testing.T, pool *pgxpool.Pool, maxQueued int) (*job.Acceptor, *notifications) {
	t.Helper()
	notified := &notifications{jobs: map[uuid.UUID]int{}, origins: map[int64]map[uuid.UUID]string{}}
	a := job.NewAcceptor(pool, notified, maxQueued)
	a.Timeout = patient
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return a.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	return a, notified
}

// acceptWithRetry accepts a request, and sends it again for as long as the acceptor is overloaded.
func acceptWithRetry(ctx context.Context, a *job.Acceptor, request job.Request) (j job.Job, replayed bool, err error) {
	for {
		if j, replayed, err = a.Accept(ctx, request); !errors.Is(err, job.ErrOverloaded) {
			return j, replayed, err
		}
		<-time.After(10 * time.Millisecond)
	}
}

func deposit(user uuid.UUID, account ledger.Account, key string) job.Request {
	return job.Request{UserID: user, Account: account.Number, Type: ledger.Deposit, Amount: 100, Key: key}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user, stranger := ledgertest.User(t, pool), ledgertest.User(t, pool)
	account, other := ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)
	if _, _, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: "opening"}); err != nil {
		t.Fatal(err)
	}
	a, notified := acceptor(t, pool, manyQueued)
	text := "rent"
	first := deposit(user, account, "k")
	first.Description = &text
	accepted, replayed, err := a.Accept(t.Context(), first)
	if err != nil || replayed || accepted.Status != job.Queued {
		t.Fatalf("accepted %+v, replayed %t, error %v", accepted, replayed, err)
	}
	if n := notified.count(accepted.ID); n != 1 {
		t.Errorf("notified %d times, want once", n)
	}
	read, err := job.NewReader(pool).Job(t.Context(), user, accepted.ID)
	if err != nil || fmt.Sprintf("%+v", read) != fmt.Sprintf("%+v", withPointers(accepted, read)) {
		t.Errorf("reads as %+v, accepted as %+v, error %v", read, accepted, err)
	}

	change := func(edit func(*job.Request)) job.Request {
		r := first
		edit(&r)
		return r
	}
	tests := []struct {
		name string
		req  job.Request
		want error
	}{
		{"Replayed", first, nil},
		{"ErrKeyReused/Amount", change(func(r *job.Request) { r.Amount++ }), job.ErrKeyReused},
		{"ErrKeyReused/Type", change(func(r *job.Request) { r.Type = ledger.Withdrawal }), job.ErrKeyReused},
		{"ErrKeyReused/Account", change(func(r *job.Request) { r.Account = other.Number }), job.ErrKeyReused},
		{"ErrKeyReused/Description", change(func(r *job.Request) { r.Description = nil }), job.ErrKeyReused},
		{"ErrKeyReused/Opening", deposit(user, account, "opening"), job.ErrKeyReused},
		{"ErrAccountNotFound/NoSuch", change(func(r *job.Request) { r.Account = "none" }), job.ErrAccountNotFound},
		{"ErrAccountNotFound/Strangers", deposit(stranger, account, "k"), job.ErrAccountNotFound},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, replayed, err := a.Accept(t.Context(), test.req)
			if !errors.Is(err, test.want) || replayed != (test.want == nil) {
				t.Fatalf("replayed %t, error %v; want %v", replayed, err, test.want)
			}
			if test.want == nil && got.ID != accepted.ID {
				t.Errorf("returned %s, want %s", got.ID, accepted.ID)
			}
		})
	}
	t.Run("KeyBelongsToItsCaller", func(t *testing.T) {
		theirs := ledgertest.Account(t, pool, stranger, 0)
		if got, replayed, err := a.Accept(t.Context(), deposit(stranger, theirs, "k")); err != nil || replayed || got.ID == accepted.ID {
			t.Errorf("another's key: %+v, replayed %t, error %v", got, replayed, err)
		}
	})
	if found := ledgertest.Check(t, pool); found.Jobs != 2 {
		t.Errorf("%d jobs in all, want 2", found.Jobs)
	}
}

// withPointers returns accepted with read's pointer where both descriptions are equal.
func withPointers(accepted, read job.Job) job.Job {
	if accepted.Description != nil && read.Description != nil && *accepted.Description == *read.Description {
		accepted.Description = read.Description
	}
	return accepted
}

// One key at the same instant, in two processes, makes one job.
func TestAcceptOneKeyAtOnce(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	one, _ := acceptor(t, pool, manyQueued)
	two, _ := acceptor(t, pool, manyQueued)
	const rounds, callers = 40, 8
	for round := range rounds {
		var (
			mu      sync.Mutex // guards ids and fresh
			ids     = map[uuid.UUID]bool{}
			fresh   int
			group   errgroup.Group
			request = deposit(user, account, fmt.Sprint("key", round))
		)
		for caller := range callers {
			a := []*job.Acceptor{one, two}[caller%2]
			group.Go(func() error {
				got, replayed, err := a.Accept(t.Context(), request)
				mu.Lock()
				defer mu.Unlock()
				ids[got.ID] = true
				if !replayed {
					fresh++
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		if len(ids) != 1 || fresh != 1 {
			t.Fatalf("round %d: %d jobs, %d of them new; want one", round, len(ids), fresh)
		}
	}
	if found := ledgertest.Check(t, pool); found.Jobs != rounds {
		t.Errorf("%d jobs in all, want %d", found.Jobs, rounds)
	}
}

// One key at the same instant for a deposit and for an opening makes one of the two.
func TestAcceptOneKeyForTwoThings(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, _ := acceptor(t, pool, manyQueued)
	const rounds = 300
	for round := range rounds {
		key := fmt.Sprint("key", round)
		var (
			group              errgroup.Group
			accepting, opening error
			ready              = make(chan struct{})
		)
		group.Go(func() error {
			<-ready
			_, _, accepting = a.Accept(t.Context(), deposit(user, account, key))
			return nil
		})
		group.Go(func() error {
			<-ready
			_, _, opening = ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: key})
			return nil
		})
		close(ready)
		_ = group.Wait() // they return no error
		if accepted, opened := accepting == nil, opening == nil; accepted == opened {
			t.Fatalf("round %d: accepted %t (%v), opened %t (%v); want one", round, accepted, accepting, opened, opening)
		}
		if errors.Is(accepting, job.ErrKeyBusy) {
			_, _, accepting = a.Accept(t.Context(), deposit(user, account, key))
		}
		if errors.Is(opening, job.ErrKeyBusy) {
			_, _, opening = ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: key})
		}
		if refused := errors.Join(accepting, opening); !errors.Is(refused, job.ErrKeyReused) {
			t.Fatalf("round %d: %v, want ErrKeyReused", round, refused)
		}
	}
}

// A key that an opening has locked is refused at once. The other requests of the batch are
// accepted.
func TestAcceptALockedKey(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	opening, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer opening.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it has ended by then
	const keys, locked = 200, 100
	if _, err := opening.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, ledger.KeyLock(user, fmt.Sprint("key", locked))); err != nil {
		t.Fatal(err)
	}
	a, notified := acceptor(t, pool, keys-1) // a refused request uses no capacity
	var group errgroup.Group
	for i := range keys {
		group.Go(func() error {
			_, _, err := acceptWithRetry(t.Context(), a, deposit(user, account, fmt.Sprint("key", i)))
			if want := i == locked; errors.Is(err, job.ErrKeyBusy) != want || (err != nil) != want {
				return fmt.Errorf("key %d: %w", i, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != keys-1 || len(notified.jobs) == 0 {
		t.Errorf("%d jobs and %d notifications, want %d jobs", found.Jobs, len(notified.jobs), keys-1)
	}
}

// Batches that share many keys, in every order, neither deadlock nor make a job twice.
func TestAcceptOverlappingBatches(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	const keys, processes = 240, 3
	var group errgroup.Group
	for process := range processes {
		a, _ := acceptor(t, pool, manyQueued)
		for i := range keys {
			n := (i*(2*process+7) + process) % keys
			group.Go(func() error {
				_, _, err := acceptWithRetry(t.Context(), a, deposit(user, account, fmt.Sprint("key", n)))
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != keys {
		t.Errorf("%d jobs, want %d", found.Jobs, keys)
	}
}

// However many jobs of an account share an insert, the notification names the last of them:
// the worker applies the others before it.
func TestAcceptNotifiesForTheLast(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	accounts := []ledger.Account{ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)}
	a, notified := acceptor(t, pool, manyQueued)
	const each = 100
	var group errgroup.Group
	for i := range each * len(accounts) {
		group.Go(func() error {
			_, _, err := acceptWithRetry(t.Context(), a, deposit(user, accounts[i%len(accounts)], fmt.Sprint("key", i)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	notified.mu.Lock()
	defer notified.mu.Unlock()
	if len(notified.jobs) >= each*len(accounts) {
		t.Errorf("%d notifications for %d jobs, many of which came together", len(notified.jobs), each*len(accounts))
	}
	for id := range notified.jobs {
		if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, manyQueued); err != nil {
			t.Fatal(err)
		}
	}
	if found := ledgertest.Check(t, pool); found.Transactions != each*int64(len(accounts)) {
		t.Errorf("applied %d jobs up to the notified ones, want all %d", found.Transactions, each*len(accounts))
	}
}

// B sent after A's response has the higher position, whichever processes accept
// them.
func TestAcceptOrder(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	one, _ := acceptor(t, pool, manyQueued)
	two, _ := acceptor(t, pool, manyQueued)
	var group errgroup.Group
	for client := range 8 {
		account := ledgertest.Account(t, pool, user, 0)
		group.Go(func() error {
			last := int64(0)
			for i := range 50 {
				a := []*job.Acceptor{one, two}[(i+client)%2]
				got, _, err := a.Accept(t.Context(), deposit(user, account, fmt.Sprint(client, "/", i)))
				if err != nil {
					return err
				}
				if got.Position <= last {
					return fmt.Errorf("client %d: position %d after %d", client, got.Position, last)
				}
				last = got.Position
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAcceptQueueFull(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	full, empty := ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)
	const capacity = 3
	a, _ := acceptor(t, pool, capacity)
	var last job.Job
	for i := range capacity {
		var err error
		if last, _, err = a.Accept(t.Context(), deposit(user, full, fmt.Sprint("k", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := a.Accept(t.Context(), deposit(user, full, "one-more")); !errors.Is(err, job.ErrQueueFull) {
		t.Fatalf("past the bound: %v, want ErrQueueFull", err)
	}
	if got, replayed, err := a.Accept(t.Context(), deposit(user, full, "k2")); err != nil || !replayed || got.ID != last.ID {
		t.Errorf("a replay needs no capacity: %v", err)
	}
	if _, _, err := a.Accept(t.Context(), deposit(user, empty, "elsewhere")); err != nil {
		t.Errorf("another account: %v", err)
	}
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), last.ID, 100); err != nil {
		t.Fatal(err)
	}
	if got, replayed, err := a.Accept(t.Context(), deposit(user, full, "one-more")); err != nil || replayed || got.Status != job.Queued {
		t.Errorf("once a job is applied, the refused key is free: replayed %t, %v", replayed, err)
	}
	ledgertest.Check(t, pool)
}

// A request that Postgres refuses is refused alone: the other requests of its batch are accepted.
func TestAcceptOneAtFault(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	ledgertest.Exec(t, pool, `ALTER TABLE jobs ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	a, _ := acceptor(t, pool, manyQueued)
	var group errgroup.Group
	for i := range 200 {
		group.Go(func() error {
			req := deposit(user, account, fmt.Sprint("k", i))
			req.Amount = int64(1 + i%20)
			_, _, err := acceptWithRetry(t.Context(), a, req)
			if (err != nil) != (req.Amount == 13) {
				return fmt.Errorf("amount %d: %w", req.Amount, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 190 {
		t.Errorf("%d jobs, want 190", found.Jobs)
	}
}

func TestAcceptWhilePostgresIsDown(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, _ := acceptor(t, pool, manyQueued)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Accept(t.Context(), deposit(user, account, "k")); err == nil {
		t.Fatal("accepted by a dead Postgres")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, replayed, err := a.Accept(t.Context(), deposit(user, account, "k")); err != nil || replayed {
		t.Errorf("after its return: replayed %t, %v", replayed, err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 1 {
		t.Errorf("%d jobs, want 1", found.Jobs)
	}
}

// In a batch whose first request is refused, each other job has its own account, key and amount.
func TestAcceptBehindARefusedRequest(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	accounts := []ledger.Account{ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)}
	if _, _, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: "opening"}); err != nil {
		t.Fatal(err)
	}
	owned := []string{accounts[0].Number, accounts[1].Number, accounts[2].Number}
	tests := []struct {
		name, key string
		numbers   []string
		capacity  *int
	}{
		{"NotOwned", "k1", append([]string{"none"}, owned[1:]...), nil},
		{"Opened", "opening", owned, nil},
		{"Full", "k2", owned, new(int)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ids := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
			keys := []string{test.key, test.key + "b", test.key + "c"}
			_, err := pool.Exec(t.Context(), job.AcceptStatement(), ids, []uuid.UUID{user, user, user}, test.numbers, keys, []int64{1, 2, 3},
				[]string{"deposit", "deposit", "deposit"}, []int64{1, 2, 3}, []*string{nil, nil, nil}, []int{1, 2, 3}, []*int{test.capacity, nil, nil}, manyQueued)
			if err != nil {
				t.Fatal(err)
			}
			reader := job.NewReader(pool)
			if got, err := reader.Job(t.Context(), user, ids[0]); !errors.Is(err, job.ErrNotFound) {
				t.Errorf("the refused request made %+v, %v", got, err)
			}
			for i := 1; i < len(ids); i++ {
				got, err := reader.Job(t.Context(), user, ids[i])
				if err != nil || got.Account != owned[i] || got.Amount != int64(i+1) {
					t.Errorf("request %d: job %+v, %v; want account %s, amount %d", i, got, err, owned[i], i+1)
				}
			}
		})
	}
	ledgertest.Check(t, pool)
}
