package worker_test

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// Where Redis refuses, two workers that sweep at the same time share the stalled
// accounts: few of them meet both.
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
		}, nil)
		w.Sweep(t.Context()) // sees the accounts for the first time
		group.Go(func() error {
			w.Sweep(t.Context())
			return nil
		})
	}
	_ = group.Wait() // they return none
	applied := 0.0
	for _, registry := range registries {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "passbook_sweep_applied_accounts_total" {
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

// A job that Postgres refuses does not keep the sweep from applying all queued jobs of
// the accounts that share a group with it.
func TestSweepAppliesBesideARefusedJob(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	refusal{t: t, admin: s.redis}.wrong("pending")
	const accounts = 32 // so many that two share a group
	const long = 70     // more than a turn
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
