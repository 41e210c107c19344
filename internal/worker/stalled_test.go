package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// A dead worker's task keeps its name until its lease ends, for half a minute and more. The
// sweep does not wait for that.
func TestSweepPassesADeadWorkersTask(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
	s.enqueue(account, id)
	// Take the task as a worker does, and die without a message to Redis.
	name := queues.Of(account.ID)
	key := "asynq:{" + name + "}:"
	if err := s.redis.RPopLPush(t.Context(), key+"pending", key+"active").Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.redis.HSet(t.Context(), key+"t:"+id.String(), "state", "active").Err(); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	s.work()
	s.drained()
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("took %v, want less than 10 s", took)
	}
}

// A task of several accounts has the name of one of them. While tasks are pending, the sweep
// believes that the other accounts have one, too, but not for ever: it may be lost.
func TestSweepBelievesASharedTask(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	const accounts = 5
	partition := queue.Partition(ledgertest.Account(t, s.pool, s.user, 0).ID, partitions)
	for notified := 0; notified < accounts; {
		account := ledgertest.Account(t, s.pool, s.user, 0)
		if queue.Partition(account.ID, partitions) == partition {
			s.client.Notify(account.ID, 1, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1), 1, nil)
			notified++
		}
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.client.Run(now); err != nil { // writes the notifications
		t.Fatal(err)
	}
	shared := s.pendingTasks()
	if shared == 0 || shared == accounts {
		t.Fatalf("%d tasks for %d accounts", shared, accounts)
	}
	w := s.sweeper()
	began := time.Now()
	for sweep := range 2 * worker.LongMissing {
		want := shared
		if sweep >= worker.LongMissing {
			want = accounts
		}
		w.Sweep(t.Context())
		n := s.pendingTasks()
		timeCounts := time.Since(began) >= worker.LongMissing*worker.SweepEvery // on a slow machine
		if n != want && (n != accounts || !timeCounts) {
			t.Errorf("%d pending tasks after %d sweeps, want %d", n, sweep+1, want)
		}
	}
}

// With a long backlog the sweeps are far apart, so the wait for a lost task is bounded by time,
// too. Meanwhile tasks of newer jobs are pending in the partition.
func TestSweepCountsTimeToo(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	lost := ledgertest.Account(t, s.pool, s.user, 0)
	partition := queue.Partition(lost.ID, partitions)
	s.enqueue(lost, ledgertest.Job(t, s.pool, lost, ledger.Deposit, 1))
	w := s.sweeper()
	for range 2 {
		w.Sweep(t.Context())
	}
	if err := s.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	account := ledgertest.Account(t, s.pool, s.user, 0)
	for queue.Partition(account.ID, partitions) != partition {
		account = ledgertest.Account(t, s.pool, s.user, 0)
	}
	s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	w.Sweep(t.Context())
	if n := s.pendingTasks(); n != 1 {
		t.Errorf("%d pending tasks after the loss and one sweep, want the one written since", n)
	}
	<-time.After(worker.LongMissing * worker.SweepEvery)
	w.Sweep(t.Context())
	if n := s.pendingTasks(); n != 2 {
		t.Errorf("%d pending tasks after another sweep, want one an account", n)
	}
}

// The sweep does not believe for ever in a pending task whose pending list Redis has lost.
func TestSweepPassesALostPendingList(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	list := "asynq:{" + queues.Of(account.ID) + "}:pending"
	if err := s.redis.Del(t.Context(), list).Err(); err != nil {
		t.Fatal(err)
	}
	w := s.sweeper()
	const enough = 40
	for range enough {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != 1 {
		t.Errorf("%d pending tasks after %d sweeps, want one", n, enough)
	}
}

// The clocks of workers are an hour apart, so tasks wait for an attempt that is due in an
// hour, or was due an hour ago. The sweep reads no clock: it believes in such a task for as
// long as the delay between two attempts.
func TestSweepPassesARetriedTask(t *testing.T) {
	t.Parallel()
	const often = 2 * worker.LongRetry
	tests := []struct {
		name  string
		due   func(sweep int) time.Duration // of the next attempt, from now, as the task has it
		after int                           // so many sweeps add no task
	}{
		{"DueInAnHour", func(int) time.Duration { return time.Hour }, worker.LongRetry},
		{"DueAnHourAgo", func(int) time.Duration { return -time.Hour }, worker.LongRetry},
		{"NextAttempt", func(sweep int) time.Duration { return time.Duration(sweep/4) * time.Second }, often},
		{"NextAttemptByAClockAhead", func(sweep int) time.Duration { return time.Hour + time.Duration(sweep/4)*time.Second }, often},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			account := ledgertest.Account(t, s.pool, s.user, 0)
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
			s.enqueue(account, id)
			started, w := time.Now(), s.sweeper()
			for sweep := range test.after {
				s.awaitRetry(account, id, started.Add(test.due(sweep)))
				w.Sweep(t.Context())
			}
			if n := s.pendingTasks(); n != 0 {
				t.Errorf("%d pending tasks after %d sweeps, want none", n, test.after)
			}
			for range worker.LongRetry + 1 {
				w.Sweep(t.Context())
			}
			if n := s.pendingTasks(); n != 1 {
				t.Errorf("%d pending tasks after %d more sweeps, want one", n, worker.LongRetry+1)
			}
		})
	}
}

// awaitRetry makes the account's first task wait for its next attempt, as Asynq does.
func (s *system) awaitRetry(account ledger.Account, id uuid.UUID, due time.Time) {
	s.t.Helper()
	key := "asynq:{" + queues.Of(account.ID) + "}:"
	_, err := s.redis.Pipelined(s.t.Context(), func(p redis.Pipeliner) error {
		p.LRem(s.t.Context(), key+"pending", 0, id.String())
		p.HSet(s.t.Context(), key+"t:"+id.String(), "state", "retry")
		p.ZAdd(s.t.Context(), key+"retry", redis.Z{Score: float64(due.Unix()), Member: id.String()})
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}
