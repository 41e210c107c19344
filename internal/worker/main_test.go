package worker_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

const partitions = 4

var queues = queue.Queues{Prefix: "test", Partitions: partitions}

// system is a worker as cmd/worker builds it, and the clients of a test.
type system struct {
	t      testing.TB
	pool   *pgxpool.Pool
	redis  redis.UniversalClient
	queues queue.Queues
	client *queue.Client
	server *queue.Server // of the last work
	user   uuid.UUID
}

func connectTo(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	client, err := queue.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newSystem(t testing.TB, pool *pgxpool.Pool, redisURL string) *system {
	t.Helper()
	return newSystemOf(t, pool, redisURL, queues)
}

func newSystemOf(t testing.TB, pool *pgxpool.Pool, redisURL string, queues queue.Queues) *system {
	t.Helper()
	client := connectTo(t, redisURL)
	return &system{
		t: t, pool: pool, redis: client, queues: queues,
		client: queue.NewClient(client, queues, slog.New(slog.DiscardHandler), func() {}),
		user:   ledgertest.User(t, pool),
	}
}

// work runs a worker. stop stops it.
func (s *system) work() (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := s.worker(ctx.Done())
	server := queue.NewServer(queue.ServerConfig{
		Redis: s.redis, Queues: s.queues, Handler: w.Apply, IsFailure: worker.IsFailure, Log: slog.New(slog.DiscardHandler),
	})
	s.server = server
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error { return w.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := group.Wait(); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// sweeper is a worker that sweeps only when the test calls Sweep.
func (s *system) sweeper() *worker.Worker {
	return s.worker(nil)
}

func (s *system) worker(stopping <-chan struct{}) *worker.Worker {
	metrics, log := worker.NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler)
	return worker.New(worker.Config{
		Applier: ledger.NewApplier(s.pool),
		Backlog: job.NewBacklog(s.pool),
		Queue:   s.client,
		Metrics: metrics,
		Log:     log,

		Publisher: queue.NewPublisher(s.redis, s.queues, log, metrics.Unpublished),
	}, stopping)
}

// notify writes notifications, as an API does, until the test ends.
func (s *system) notify() {
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return s.client.Run(ctx) })
	s.t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *system) enqueue(account ledger.Account, id uuid.UUID) {
	s.t.Helper()
	if err := s.client.Enqueue(s.t.Context(), queue.Task{AccountID: account.ID, JobID: id}); err != nil {
		s.t.Fatal(err)
	}
}

// accountIn opens accounts until one is of the partition.
func (s *system) accountIn(partition int) ledger.Account {
	s.t.Helper()
	account := ledgertest.Account(s.t, s.pool, s.user, 0)
	for queue.Partition(account.ID, partitions) != partition {
		account = ledgertest.Account(s.t, s.pool, s.user, 0)
	}
	return account
}

func (s *system) count(status job.Status) (n int) {
	s.t.Helper()
	if err := s.pool.QueryRow(s.t.Context(), `SELECT count(*) FROM job_states WHERE status = $1`, string(status)).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *system) drained() {
	s.t.Helper()
	testenv.Eventually(s.t, "every job to be finished", func() bool { return s.count(job.Queued) == 0 })
	ledgertest.Check(s.t, s.pool)
}

// inOrder checks that the account's history is in the order of its jobs.
func (s *system) inOrder(account ledger.Account, want []uuid.UUID) {
	s.t.Helper()
	rows, err := s.pool.Query(s.t.Context(), `SELECT job_id FROM transactions WHERE account_id = $1 AND job_id IS NOT NULL ORDER BY seq`, account.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	var got []uuid.UUID
	for rows.Next() {
		var id uuid.UUID
		if err := rows.Scan(&id); err != nil {
			s.t.Fatal(err)
		}
		got = append(got, id)
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("account %s: %d jobs took effect in another order than the %d were accepted in", account.Number, len(got), len(want))
	}
}

// pendingTasks counts the pending tasks of all partitions.
func (s *system) pendingTasks() (n int) {
	s.t.Helper()
	inspector := asynq.NewInspectorFromRedisClient(s.redis)
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err == nil {
			n += info.Pending
		}
	}
	return n
}
