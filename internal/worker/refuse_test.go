package worker_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// refusal is a trouble of Redis.
type refusal struct {
	t      *testing.T
	server *local.Redis
	admin  redis.UniversalClient // whom Redis allows everything
}

func (r refusal) do(args ...any) {
	r.t.Helper()
	if err := r.admin.Do(r.t.Context(), args...).Err(); err != nil {
		r.t.Fatalf("%v: %v", args, err)
	}
}

// wrong puts values of a wrong type at the keys of each partition.
func (r refusal) wrong(keys ...string) {
	r.t.Helper()
	for partition := range partitions {
		for _, key := range keys {
			r.do("SET", "asynq:{"+queues.Name(partition)+"}:"+key, "of a wrong type")
		}
	}
}

// An outage of Redis costs latency, not progress: whatever Redis refuses, what is
// accepted meanwhile is applied while the trouble lasts, in order, and not again
// when Redis is back.
func TestSweepAppliesWhereRedisRefuses(t *testing.T) {
	t.Parallel()
	flush := func(r refusal) { r.do("FLUSHALL") }
	allow := func(r refusal) { r.do("ACL", "SETUSER", "app", "+@all") }
	thaw := func() {}
	tests := []struct {
		name   string
		refuse func(refusal)
		end    func(refusal)
		hashes bool // the tasks' own keys are of a wrong type
	}{
		{name: "Killed", refuse: func(r refusal) {
			if err := r.server.Kill(); err != nil {
				r.t.Fatal(err)
			}
		}, end: func(r refusal) {
			if err := r.server.Restart(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
			r.do("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
		}},
		{name: "Hanging", refuse: func(r refusal) { thaw = testenv.Freeze(r.t, r.server.PID()) }, end: func(refusal) { thaw() }},
		{
			name: "Full", refuse: func(r refusal) { r.do("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction") },
			end: func(r refusal) { r.do("CONFIG", "SET", "maxmemory", "0") },
		},
		{name: "ReadOnly", refuse: func(r refusal) { r.do("REPLICAOF", "127.0.0.1", "1") }, end: func(r refusal) { r.do("REPLICAOF", "NO", "ONE") }},
		{name: "Forbidden", refuse: func(r refusal) { r.do("ACL", "SETUSER", "app", "-@all") }, end: allow},
		{name: "ForbiddenToWrite", refuse: func(r refusal) { r.do("ACL", "SETUSER", "app", "-@write") }, end: allow},
		{name: "ForbiddenToDequeue", refuse: func(r refusal) { r.do("ACL", "SETUSER", "app", "-rpoplpush") }, end: allow},
		{name: "WrongPendingLists", refuse: func(r refusal) { r.wrong("pending") }, end: flush},
		{name: "WrongActiveLists", refuse: func(r refusal) { r.wrong("active") }, end: flush},
		{name: "WrongLeases", refuse: func(r refusal) { r.wrong("lease") }, end: flush},
		{name: "WrongTaskHashes", refuse: func(refusal) {}, end: flush, hashes: true},
		{name: "WrongKeys", refuse: func(r refusal) {
			r.wrong("pending", "active", "lease", "retry", "scheduled", "archived", "completed")
			r.do("SET", "asynq:queues", "of a wrong type")
		}, end: flush, hashes: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := testenv.RedisServer(t)
			admin, err := queue.Connect(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = admin.Close() })
			r := refusal{t, server, admin}
			r.do("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
			app, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			app.User = url.UserPassword("app", "secret")
			s := newSystem(t, testenv.Pool(t), app.String())
			for range 3 {
				s.work()
			}
			r.finishesWhile(s, test.refuse, test.end, test.hashes)
		})
	}
}

// finishesWhile has jobs accepted and finished between refuse and end.
func (r refusal) finishesWhile(s *system, refuse, end func(refusal), hashes bool) {
	t := s.t
	t.Helper()
	const accounts, each = 60, 3
	var of []ledger.Account
	for range accounts {
		of = append(of, ledgertest.Account(t, s.pool, s.user, 0))
	}
	s.notify()
	refuse(r)
	began := time.Now()
	order := map[string][]uuid.UUID{}
	for range each {
		for _, account := range of {
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
			order[account.Number] = append(order[account.Number], id)
			if hashes {
				partition := queues.Of(account.ID)
				r.do("SET", fmt.Sprintf("asynq:{%s}:t:%s", partition, id), "of a wrong type")
			}
			s.client.Notify(account.ID, int64(len(order[account.Number])), id, 1)
		}
	}
	s.drained()
	t.Logf("all finished after %v; to reach on an idle machine: 10 s", time.Since(began))
	end(r)
	after := ledgertest.Job(t, s.pool, of[0], ledger.Deposit, 1)
	order[of[0].Number] = append(order[of[0].Number], after)
	s.client.Notify(of[0].ID, each+1, after, 1)
	s.drained()
	if n := s.count(job.Succeeded); n != accounts*each+1 {
		t.Errorf("%d jobs succeeded, want %d", n, accounts*each+1)
	}
	for _, account := range of {
		s.inOrder(account, order[account.Number])
	}
}

// notify writes what is rung for, as an API does, until the test ends.
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

// A partition of which Redis refuses the pending list has its accounts applied,
// and the sweep writes the tasks of the other partitions' accounts.
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

// accountIn opens accounts until one is of the partition.
func (s *system) accountIn(partition int) ledger.Account {
	s.t.Helper()
	account := ledgertest.Account(s.t, s.pool, s.user, 0)
	for queue.Partition(account.ID, partitions) != partition {
		account = ledgertest.Account(s.t, s.pool, s.user, 0)
	}
	return account
}

// A partition that an operator paused stays so: its accounts aren't applied by the sweep.
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

// Where more accounts have queued jobs than a sweep looks at, the next ones have
// their turn, though the first ones don't move.
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

// An account that has lost its row, as a partial restore leaves it, has its jobs fail
// without Redis as they do with it: they don't wait for ever, and the log tells.
func TestSweepFailsJobsWithoutAnAccount(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account, whole := ledgertest.Account(t, s.pool, s.user, 0), ledgertest.Account(t, s.pool, s.user, 0)
	for _, of := range []ledger.Account{account, whole} {
		ledgertest.Job(t, s.pool, of, ledger.Deposit, 1)
		ledgertest.Job(t, s.pool, of, ledger.Deposit, 1)
	}
	ledgertest.Unguarded(t, s.pool, fmt.Sprintf(`DELETE FROM accounts WHERE id = %d`, account.ID))
	refusal{t: t, admin: s.redis}.wrong("pending")
	w := s.sweeper()
	for range 3 * ledger.MaxAttempts {
		w.Sweep(t.Context())
	}
	if failed, succeeded := s.count(job.Failed), s.count(job.Succeeded); failed != 2 || succeeded != 2 {
		t.Errorf("%d jobs failed and %d succeeded, want the 2 of the lost account and the 2 of the other", failed, succeeded)
	}
}
