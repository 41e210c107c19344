package worker_test

import (
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// refusal is a Redis that refuses what a worker asks.
type refusal struct {
	t      *testing.T
	server *local.Redis
	admin  redis.UniversalClient // Redis allows it everything
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

// An outage of Redis costs latency, not progress. Whatever Redis refuses, the jobs accepted
// meanwhile are applied while it does, in order, and not again when Redis is back.
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
			r := refusal{t, server, connectTo(t, server.URL())}
			r.do("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
			app, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			app.User = url.UserPassword("app", "secret")
			s := newSystem(t, testenv.Pool(t), app.String())
			for range 2 {
				s.work()
			}
			r.finishesWhile(s, test.refuse, test.end, test.hashes)
		})
	}
}

// finishesWhile checks that jobs are accepted and finished between refuse and end.
func (r refusal) finishesWhile(s *system, refuse, end func(refusal), hashes bool) {
	t := s.t
	t.Helper()
	const accounts, each = 32, 3 // so many that two share a group
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
			s.client.Notify(account.ID, int64(len(order[account.Number])), id, 1, nil)
		}
	}
	s.drained()
	t.Logf("all finished after %v; to reach on an idle machine: 10 s", time.Since(began))
	end(r)
	after := ledgertest.Job(t, s.pool, of[0], ledger.Deposit, 1)
	order[of[0].Number] = append(order[of[0].Number], after)
	s.client.Notify(of[0].ID, each+1, after, 1, nil)
	s.drained()
	if n := s.count(job.Succeeded); n != accounts*each+1 {
		t.Errorf("%d jobs succeeded, want %d", n, accounts*each+1)
	}
	for _, account := range of {
		s.inOrder(account, order[account.Number])
	}
}

// The jobs of an account that has lost its row, as after a partial restore, fail without
// Redis, as they do with it. They don't wait for ever.
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

// Where Redis refuses, two workers that sweep at the same time share the stalled accounts:
// both apply only few of them.
func TestSweepsShareStalledAccounts(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	const accounts, each = 60, 3
	ledgertest.Exec(t, s.pool, `
		WITH opened AS (
			INSERT INTO accounts (user_id, number, currency, last_at, created_at)
			SELECT $1, (100000000000 + n)::text, 'KRW', now(), now() FROM generate_series(1, $2) n RETURNING id, user_id)
		INSERT INTO jobs (id, user_id, account_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), user_id, id, 'deposit', 1, gen_random_uuid()::text FROM opened, generate_series(1, $3)`,
		s.user, accounts, each)
	refusal{t: t, admin: s.redis}.wrong("pending")
	var group errgroup.Group
	var registries []*prometheus.Registry
	for range 2 {
		registry := prometheus.NewRegistry()
		registries = append(registries, registry)
		w := worker.New(worker.Config{
			Applier: ledger.NewApplier(s.pool), Backlog: job.NewBacklog(s.pool), Queue: s.client,
			Metrics: worker.NewMetrics(registry), Log: slog.New(slog.DiscardHandler),
			Publisher: queue.NewPublisher(s.redis, s.queues, slog.New(slog.DiscardHandler), func(int) {}),
		}, nil)
		w.Sweep(t.Context()) // sees the accounts for the first time
		group.Go(func() error {
			w.Sweep(t.Context())
			return nil
		})
	}
	_ = group.Wait() // returns no error
	applied := 0.0
	for _, registry := range registries {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "passbook_sweep_applies_total" {
				applied += family.GetMetric()[0].GetCounter().GetValue()
			}
		}
	}
	t.Logf("%v accounts applied, of %d", applied, accounts)
	if applied < accounts/2 || applied > 1.6*accounts {
		t.Errorf("the workers applied %v accounts of %d; where both apply all it is twice as many", applied, accounts)
	}
	if n := s.count(job.Succeeded); n < accounts {
		t.Errorf("%d jobs applied, want %d at least", n, accounts)
	}
	ledgertest.Check(t, s.pool)
}

// Although Postgres refuses one job, the sweep applies all queued jobs of the other accounts
// in its group.
func TestSweepAppliesBesideARefusedJob(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	refusal{t: t, admin: s.redis}.wrong("pending")
	const accounts = 32 // so many that two share a group
	const long = 70     // more than a batch has
	for n := range accounts {
		amounts := []int64{1}
		switch n {
		case 0:
			amounts = []int64{13}
		case 1:
			amounts = slices.Repeat(amounts, long)
		}
		account := ledgertest.Account(t, s.pool, s.user, 0)
		for _, amount := range amounts {
			ledgertest.Job(t, s.pool, account, ledger.Deposit, amount)
		}
	}
	w := s.sweeper()
	for range 2 {
		w.Sweep(t.Context())
	}
	if n := s.count(job.Queued); n != 1 {
		t.Errorf("%d jobs are queued, want the refused one alone", n)
	}
}

// No worker takes a task from a pending list that does not move, so the sweep applies the job after
// LongUnmoved sweeps. Without that it would wait for a task that looks lost.
func TestSweepAppliesBehindAListThatDoesNotMove(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	w := s.sweeper() // which runs no worker
	const noted = 2  // sweeps until the account and the list are known
	for n := 0; s.count(job.Succeeded) == 0; n++ {
		if n > worker.LongUnmoved+noted {
			t.Fatalf("the job is queued after %d sweeps", n)
		}
		w.Sweep(t.Context())
	}
}
