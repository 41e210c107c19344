package finished

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// wait waits for a job of the user until the test ends.
func (e *environment) wait(user, id uuid.UUID) <-chan job.Job {
	e.t.Helper()
	finished, stop, ok := e.hub.Wait(user, id)
	if !ok {
		e.t.Fatal("too many wait")
	}
	e.t.Cleanup(stop)
	return finished
}

// finish applies the jobs up to id, and a worker publishes them.
func (e *environment) finish(account ledger.Account, id uuid.UUID) {
	e.t.Helper()
	e.applyJob(id)
	e.publish([]queue.Finished{{JobID: id, AccountID: account.ID}})
}

func (e *environment) applyJob(id uuid.UUID) {
	e.t.Helper()
	if _, _, err := ledger.NewApplier(e.pool).Apply(e.t.Context(), id, 1); err != nil {
		e.t.Fatal(err)
	}
}

func (e *environment) wantJob(finished <-chan job.Job, id uuid.UUID, status job.Status) {
	e.t.Helper()
	if got := receive(e.t, finished); got.ID != id || got.Status != status {
		e.t.Errorf("got %v, want %s, %s", got, id, status)
	}
}

// Every waiter of a job gets it.
func TestWait(t *testing.T) {
	t.Parallel()
	e := start(t)
	user := ledgertest.User(t, e.pool)
	account := ledgertest.Account(t, e.pool, user, 0)
	e.listens(true)
	deposit, withdrawal := ledgertest.Job(t, e.pool, account, ledger.Deposit, 1), ledgertest.Job(t, e.pool, account, ledger.Withdrawal, 5)
	one, two := e.wait(user, deposit), e.wait(user, deposit)
	e.finish(account, deposit)
	e.wantJob(one, deposit, job.Succeeded)
	e.wantJob(two, deposit, job.Succeeded)

	e.finish(account, withdrawal) // its message is heard before or after the wait begins
	e.wantJob(e.wait(user, withdrawal), withdrawal, job.Rejected)
	e.atRest()
}

// atRest checks that the hub keeps nothing of jobs for which no request waits.
func (e *environment) atRest() {
	e.t.Helper()
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	if h := e.hub; len(h.waiting) != 0 || h.waiters != 0 || len(h.waitersOf) != 0 || len(h.due) != 0 {
		e.t.Errorf("%d jobs are waited for by %d of %d users, %d are due", len(h.waiting), h.waiters, len(h.waitersOf), len(h.due))
	}
}

// Without messages, or with those of another job, a waiter gets its job from the hub's own look.
func TestWait_WithoutMessages(t *testing.T) {
	t.Parallel()
	e := start(t)
	user := ledgertest.User(t, e.pool)
	account := ledgertest.Account(t, e.pool, user, 0)
	e.listens(true)
	lost, away := ledgertest.Job(t, e.pool, account, ledger.Deposit, 1), ledgertest.Job(t, e.pool, account, ledger.Deposit, 1)
	finished := e.wait(user, lost)
	e.publish([]queue.Finished{{JobID: uuid.New(), AccountID: account.ID}, {JobID: lost, AccountID: account.ID}}) // forged: it is still queued
	e.applyJob(lost)
	e.wantJob(finished, lost, job.Succeeded)
	if err := e.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	e.listens(false)
	finished = e.wait(user, away)
	e.finish(account, away)
	e.wantJob(finished, away, job.Succeeded)
	e.atRest()
}

// afterQuery calls f at the end of each query: its rows are read, but not yet returned to the caller.
type afterQuery func()

func (afterQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (f afterQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { f() }

// A read that began before a replay has read the job's failure. A waiter that came after the replay
// does not get that failure.
func TestWait_Replayed(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT refused CHECK (false) NOT VALID`)
	for range ledger.MaxAttempts {
		if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err != nil && !errors.Is(err, ledger.ErrRefused) {
			t.Fatal(err)
		}
	}

	var late <-chan job.Job
	config := pool.Config()
	var hub *Hub
	config.ConnConfig.Tracer = afterQuery(sync.OnceFunc(func() {
		ledgertest.Replay(t, pool, id)
		late, _, _ = hub.Wait(user, id)
	}))
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	hub = New(nil, traced, nil) // does not run
	early, _, _ := hub.Wait(user, id)
	look := func() {
		if err := hub.lookAtJobs(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if len(early) != 1 || (<-early).Status != job.Failed {
		t.Error("the waiter from before the read does not get the failure")
	}
	if len(late) != 0 {
		t.Fatalf("the waiter from after the replay gets %v", <-late)
	}

	ledgertest.Exec(t, pool, `ALTER TABLE transactions DROP CONSTRAINT refused`)
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	look()
	if len(late) != 1 || (<-late).Status != job.Succeeded {
		t.Error("the waiter from after the replay does not get what followed")
	}
	if len(hub.waiting) != 0 || hub.waiters != 0 {
		t.Errorf("%d jobs are waited for by %d", len(hub.waiting), hub.waiters)
	}
}

// A waiter gets no job of another user, and one that is waited for by its owner is no other user's.
func TestWait_Owner(t *testing.T) {
	t.Parallel()
	e := start(t)
	user, other := ledgertest.User(t, e.pool), ledgertest.User(t, e.pool)
	account := ledgertest.Account(t, e.pool, user, 0)
	e.listens(true)
	id := ledgertest.Job(t, e.pool, account, ledger.Deposit, 1)
	stolen, stop, _ := e.hub.Wait(other, id)
	e.applyJob(id)
	if err := e.hub.lookAtJobs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(stolen) != 0 {
		t.Error("another user gets the job")
	}
	if _, _, ok := e.hub.Wait(user, id); ok {
		t.Error("two users wait for one job")
	}
	stop()
	e.wantJob(e.wait(user, id), id, job.Succeeded)
}

// A job whose message was heard before its waiter came is read at once.
func TestWait_Recent(t *testing.T) {
	t.Parallel()
	hub := New(nil, nil, nil) // does not run
	user, id := uuid.New(), uuid.New()
	hub.heard([]queue.Finished{{JobID: id}, {JobID: uuid.New()}})
	if _, _, ok := hub.Wait(user, id); !ok || len(hub.isDue) != 1 {
		t.Error("no job is due")
	}
	if due := hub.takeDue(); len(due) != 1 || due[0] != (job.Owned{UserID: user, ID: id}) {
		t.Errorf("due: %v", due)
	}
}

// The number of waiters is bounded, in total and for each user. A waiter that stops no longer counts.
func TestWait_Bound(t *testing.T) {
	t.Parallel()
	e := start(t)
	wait := func(user uuid.UUID) (stop func(), ok bool) {
		_, stop, ok = e.hub.Wait(user, uuid.New())
		return stop, ok
	}
	var user uuid.UUID
	var stops []func()
	for n := range maxWaiters {
		if n%maxWaitersPerUser == 0 {
			if n > 0 {
				if _, ok := wait(user); ok {
					t.Fatalf("of %d one user has more than the bound", n)
				}
			}
			user = uuid.New()
		}
		stop, ok := wait(user)
		if !ok {
			t.Fatalf("%d wait, and no more", n)
		}
		stops = append(stops, stop)
	}
	other := uuid.New()
	if _, ok := wait(other); ok {
		t.Error("one more than the bound waits")
	}
	stops[0]()
	stops[0]()
	stop, ok := wait(other)
	if !ok {
		t.Error("a stop left no place")
	}
	if _, ok := wait(other); ok {
		t.Error("a stop left two places")
	}
	for _, stop := range append(stops, stop) {
		stop()
	}
	e.atRest()
}

// The jobs that finished last are known, the older ones are forgotten.
func TestRecent(t *testing.T) {
	t.Parallel()
	r := newRecent()
	var ids []uuid.UUID
	for range maxRecent + 2 {
		id := uuid.New()
		r.add(id)
		r.add(id)
		ids = append(ids, id)
	}
	for i, id := range ids {
		if want := i >= 2; r.has(id) != want {
			t.Fatalf("of %d jobs the one at %d: %t", len(ids), i, !want)
		}
	}
	if len(r.ids) != maxRecent {
		t.Errorf("%d ids", len(r.ids))
	}
}
