package finished

import (
	"context"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

// environment is a hub of a running API, and a worker that applies what the test says.
type environment struct {
	t       *testing.T
	pool    *pgxpool.Pool
	redis   *local.Redis
	hub     *Hub
	publish func([]queue.Finished)
}

func start(t *testing.T) *environment {
	t.Helper()
	e := &environment{t: t, pool: testenv.Pool(t), redis: testenv.RedisServer(t)}
	client, err := queue.Connect(e.redis.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	queues, log := queue.Queues{Prefix: "test", Partitions: 4}, slog.New(slog.DiscardHandler)
	e.hub = New(queue.NewSubscription(client, queues, log), e.pool, log)
	publisher := queue.NewPublisher(client, queues, log, func(int) {})
	e.publish = publisher.Publish
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return e.hub.Run(ctx) })
	group.Go(func() error { return publisher.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// listens waits until the hub has a subscription, or has none.
func (e *environment) listens(want bool) {
	e.t.Helper()
	testenv.Eventually(e.t, "the subscription to change", func() bool {
		e.hub.mu.Lock()
		defer e.hub.mu.Unlock()
		return e.hub.listening == want
	})
}

// apply applies a deposit, and a worker publishes it unless it is killed before.
func (e *environment) apply(account ledger.Account, isPublished bool) {
	e.t.Helper()
	id := ledgertest.Job(e.t, e.pool, account, ledger.Deposit, 1)
	applied, _, err := ledger.NewApplier(e.pool).Apply(e.t.Context(), id, 1)
	if err != nil || len(applied) != 1 || applied[0].JobID != id || applied[0].AccountID != account.ID {
		e.t.Fatalf("applied %v, %v", applied, err)
	}
	if isPublished {
		e.publish([]queue.Finished{{JobID: id, AccountID: account.ID}})
	}
}

// watch watches until the test ends. It takes the signal of the first look.
func (e *environment) watch(account ledger.Account) <-chan struct{} {
	e.t.Helper()
	changed, stop := e.hub.WatchAccount(account.ID)
	e.t.Cleanup(stop)
	signal(e.hub.lookAtAccountsNow)
	testenv.Eventually(e.t, "the first look", func() bool {
		e.hub.mu.Lock()
		defer e.hub.mu.Unlock()
		return e.hub.accounts[account.ID].version != ""
	})
	select {
	case <-changed:
	default: // of an account that was watched already
	}
	return changed
}

func receive[T any](t *testing.T, from <-chan T) (got T) {
	t.Helper()
	testenv.Eventually(t, "a signal", func() bool {
		select {
		case got = <-from:
			return true
		default:
			return false
		}
	})
	return got
}

// A watcher is signalled by a message, and so are all others of its account.
func TestWatchAccount(t *testing.T) {
	t.Parallel()
	e := start(t)
	user := ledgertest.User(t, e.pool)
	one, other := ledgertest.Account(t, e.pool, user, 0), ledgertest.Account(t, e.pool, user, 0)
	e.listens(true)
	watchers := []<-chan struct{}{e.watch(one), e.watch(one)}
	others := e.watch(other)
	e.apply(one, true)
	for _, changed := range watchers {
		receive(t, changed)
	}
	if len(others) > 0 {
		t.Error("the watcher of another account is signalled")
	}
	changed, stop := e.hub.WatchAccount(other.ID)
	stop()
	stop()
	e.apply(other, true)
	receive(t, others)
	if len(changed) > 0 {
		t.Error("a watcher is signalled that has stopped")
	}
}

// Without messages a watcher is signalled by what Postgres shows: of its account alone, of
// rejected and of failed jobs too.
func TestWatchAccount_WithoutMessages(t *testing.T) {
	t.Parallel()
	e := start(t)
	user := ledgertest.User(t, e.pool)
	one, other := ledgertest.Account(t, e.pool, user, 0), ledgertest.Account(t, e.pool, user, 0)
	e.listens(true)
	changed, others := e.watch(one), e.watch(other)

	e.apply(one, false) // the worker is killed before it publishes
	signal(e.hub.lookAtAccountsNow)
	receive(t, changed)
	if err := e.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	e.listens(false)
	e.apply(one, true)
	receive(t, changed)
	rejected := ledgertest.Job(t, e.pool, one, ledger.Withdrawal, 1000)
	if _, _, err := ledger.NewApplier(e.pool).Apply(t.Context(), rejected, 1); err != nil {
		t.Fatal(err)
	}
	receive(t, changed)
	ledgertest.Job(t, e.pool, one, ledger.Deposit, 1)
	ledgertest.Exec(t, e.pool, `INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'internal_error' FROM queue`)
	receive(t, changed)
	if len(others) > 0 {
		t.Error("the watcher of another account is signalled")
	}

	if err := e.redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.listens(true)
	e.apply(one, true)
	receive(t, changed)
}

// While no account is watched, the hub asks Postgres nothing.
func TestHub_AtRest(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.listens(true)
	before := e.pool.Stat().AcquireCount()
	if err := e.hub.lookAtAccounts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := e.pool.Stat().AcquireCount() - before; n != 0 {
		t.Errorf("%d queries", n)
	}
}
