package worker_test

import (
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Two installations that share a Redis take each other's tasks and give them back. All jobs of
// both finish, and no task is archived.
func TestUnknownJobIsGivenBack(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	bothFinish(newSystem(t, testenv.Pool(t), shared), newSystem(t, testenv.Pool(t), shared))
}

// Two installations that share a Redis under different prefixes don't meet: neither takes a
// task of the other.
func TestTwoInstallationsOnOneRedis(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	one := newSystemOf(t, testenv.Pool(t), shared, queue.Queues{Prefix: "one", Partitions: partitions})
	two := newSystemOf(t, testenv.Pool(t), shared, queue.Queues{Prefix: "two", Partitions: partitions})
	bothFinish(one, two)
	for _, s := range []*system{one, two} {
		inspector := asynq.NewInspectorFromRedisClient(s.queues.Only(s.redis))
		names, err := inspector.Queues()
		if err != nil || len(names) == 0 {
			t.Errorf("queues %v, %v; want some", names, err)
		}
		for _, name := range names {
			if info, err := inspector.GetQueueInfo(name); err != nil || info.FailedTotal > 0 || !strings.HasPrefix(name, s.queues.Prefix) {
				t.Errorf("queue %s of %s: %+v, %v; want none that failed", name, s.queues.Prefix, info, err)
			}
		}
	}
	keys, err := one.redis.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	shareable := regexp.MustCompile(`^(asynq:\{)?(one|two):|^asynq:(queues|servers|workers)|^asynq:\{\w+:\d+:`)
	for _, key := range keys {
		if !shareable.MatchString(key) {
			t.Errorf("key %s belongs to neither prefix", key)
		}
	}
}

// Of two installations under the same prefix the second one leaves the queues to the first,
// and reports that. The jobs of both finish, and neither takes a task of the other.
func TestTwoInstallationsSamePrefix(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	first, second := newInstallation(t, shared), newInstallation(t, shared)
	bothFinish(first, second)
	if first.queues.Owner.Err() != nil || !errors.Is(second.queues.Owner.Err(), queue.ErrOtherInstallation) {
		t.Errorf("the first reports %v, the second %v; want an error of the second", first.queues.Owner.Err(), second.queues.Owner.Err())
	}
	inspector := asynq.NewInspectorFromRedisClient(first.redis)
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err == nil && info.FailedTotal > 0 {
			t.Errorf("queue %s: %d attempts failed, want none", info.Queue, info.FailedTotal)
		}
	}
	if err := first.redis.Del(t.Context(), queues.Prefix+":installation").Err(); err != nil { // as an operator does
		t.Fatal(err)
	}
	second.queues.Owner.Check(t.Context())
	if err := second.queues.Owner.Err(); err != nil {
		t.Errorf("the key was deleted, and the second reports %v", err)
	}
}

// newInstallation is a system whose database is an installation of its own.
func newInstallation(t *testing.T, redisURL string) *system {
	t.Helper()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, `UPDATE installation SET id = gen_random_uuid()`)
	id, err := postgres.Installation(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	client := connectTo(t, redisURL)
	own := queues
	own.Owner = queue.NewOwner(client, own.Prefix, id, slog.New(slog.DiscardHandler))
	own.Owner.Check(t.Context())
	return newSystemOf(t, pool, redisURL, own)
}

// bothFinish runs two installations until all jobs of both have finished.
func bothFinish(both ...*system) {
	const accounts = 40
	for _, s := range both {
		s.work()
	}
	for range accounts {
		for _, s := range both {
			account := ledgertest.Account(s.t, s.pool, s.user, 0)
			job := ledgertest.Job(s.t, s.pool, account, ledger.Deposit, 1)
			if s.queues.Owner.Err() == nil {
				s.enqueue(account, job)
			}
		}
	}
	for _, s := range both {
		s.drained()
		s.nothingArchived()
	}
}

func (s *system) nothingArchived() {
	s.t.Helper()
	keys, err := s.redis.Keys(s.t.Context(), "asynq:{*}:archived").Result()
	if err != nil || len(keys) > 0 {
		s.t.Errorf("archived tasks in %v, %v; want none", keys, err)
	}
}

// An API and a worker have different numbers of partitions. All jobs finish in order, no task
// stays in Redis, and a worker that has fewer partitions reports that.
func TestDifferingPartitions(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		api     int
		reports bool
	}{
		"APIHasMore": {api: 2 * partitions, reports: true},
		"APIHasLess": {api: partitions / 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			api := queue.NewClient(s.redis, queue.Queues{Prefix: queues.Prefix, Partitions: test.api}, slog.New(slog.DiscardHandler), func() {})
			const accounts, each = 40, 3
			began := time.Now()
			order := map[ledger.Account][]uuid.UUID{}
			for range accounts {
				account := ledgertest.Account(t, s.pool, s.user, 0)
				for range each {
					id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
					order[account] = append(order[account], id)
					if err := api.Enqueue(t.Context(), queue.Task{AccountID: account.ID, JobID: id}); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.work()
			s.drained()
			t.Logf("all finished after %v; to reach on an idle machine: 10 s", time.Since(began))
			for account, want := range order {
				s.inOrder(account, want)
			}
			testenv.Eventually(t, "no task to stay", func() bool {
				left, err := s.redis.Keys(t.Context(), "asynq:{*}:t:*").Result()
				return err == nil && len(left) == 0
			})
			s.nothingArchived()
			if err := s.server.ExtraQueues(); errors.Is(err, queue.ErrExtraQueues) != test.reports {
				t.Errorf("the worker reports %v; want a report: %t", err, test.reports)
			}
		})
	}
}
