package worker_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The sweep finds jobs without a task, also more of them than a batch has.
func TestSweepFindsJobsWithoutATask(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account, other := ledgertest.Account(t, s.pool, s.user, 0), ledgertest.Account(t, s.pool, s.user, 0)
	var order []uuid.UUID
	for range 300 {
		order = append(order, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	}
	ledgertest.Job(t, s.pool, other, ledger.Deposit, 1)
	s.work()
	s.drained()
	s.inOrder(account, order)
}

// All tasks are lost while workers handle them.
func TestSweepAfterFlushAll(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	var jobs int
	for range 20 {
		account := ledgertest.Account(t, s.pool, s.user, 0)
		for range 20 {
			s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
			jobs++
		}
	}
	s.work()
	testenv.Eventually(t, "the first jobs", func() bool { return s.count(job.Succeeded) > 0 })
	if err := s.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.drained()
	if n := s.count(job.Succeeded); n != jobs {
		t.Errorf("%d jobs succeeded, want %d", n, jobs)
	}
}

// The sweep adds no task for accounts whose tasks are pending. Where the tasks are lost it
// adds one for each account, not one for each job or each sweep.
func TestSweepBoundsItsTasks(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	const accounts, jobs, sweeps = 5, 40, 6
	for range accounts {
		account := ledgertest.Account(t, s.pool, s.user, 0)
		for range jobs {
			s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
		}
	}
	w := s.sweeper()
	for range sweeps {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != accounts*jobs {
		t.Errorf("%d pending tasks after %d sweeps, want %d as before", n, sweeps, accounts*jobs)
	}
	if err := s.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range sweeps {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != accounts {
		t.Errorf("%d pending tasks after their loss and %d sweeps, want one an account", n, sweeps)
	}
}

// Where Redis refuses a partition's pending list, the sweep applies its accounts itself, and
// writes tasks for the accounts of the other partitions.
func TestSweepErrorConcernsOnePartition(t *testing.T) {
	t.Parallel()
	for bad := range partitions { // 0 included: a pipeline returns its first command's error
		t.Run(fmt.Sprint(bad), func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			list := func(partition int) string { return "asynq:{" + queues.Name(partition) + "}:pending" }
			if err := s.redis.Set(t.Context(), list(bad), "of a wrong type", 0).Err(); err != nil {
				t.Fatal(err)
			}
			for partition := range partitions {
				ledgertest.Job(t, s.pool, s.accountIn(partition), ledger.Deposit, 1)
			}
			w := s.sweeper()
			for range 2 {
				w.Sweep(t.Context())
			}
			for partition := range partitions {
				if n := s.redis.LLen(t.Context(), list(partition)).Val(); partition != bad && n != 1 {
					t.Errorf("%d tasks of partition %d, want 1", n, partition)
				}
			}
			if n := s.count(job.Succeeded); n != 1 {
				t.Errorf("%d jobs applied, want the one whose pending list is of a wrong type", n)
			}
		})
	}
}

// The sweep does not apply the accounts of a partition that an operator has paused.
func TestSweepLeavesAPausedPartition(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	key := "asynq:{" + queues.Of(account.ID) + "}:paused"
	if err := s.redis.Set(t.Context(), key, time.Now().Unix(), 0).Err(); err != nil {
		t.Fatal(err)
	}
	w := s.sweeper()
	const enough = 40
	for range enough {
		w.Sweep(t.Context())
	}
	if n := s.count(job.Succeeded); n != 0 {
		t.Errorf("%d jobs of a paused partition applied, want none", n)
	}
}

// Where more accounts have queued jobs than a sweep checks, later sweeps check the next ones,
// although the first ones do not move.
func TestSweepGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	const most, accounts = 1000, 1001
	if _, err := s.pool.Exec(t.Context(), `
		WITH opened AS (
			INSERT INTO accounts (user_id, number, currency, last_at, created_at)
			SELECT $1, (100000000000 + n)::text, 'KRW', now(), now() FROM generate_series(1, $2) n RETURNING id, user_id)
		INSERT INTO jobs (id, user_id, account_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), user_id, id, 'deposit', 1, id::text FROM opened`, s.user, accounts); err != nil {
		t.Fatal(err)
	}
	lock, err := s.pool.Begin(t.Context()) // so that the sweep doesn't apply the first ones itself
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it only locks
	if _, err := lock.Exec(t.Context(), `SELECT FROM accounts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	w := s.sweeper()
	w.SweepAtMost(most)
	for range 40 {
		w.Sweep(t.Context())
		if s.pendingTasks() == accounts {
			return
		}
	}
	t.Errorf("%d tasks for %d accounts", s.pendingTasks(), accounts)
}
