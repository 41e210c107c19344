package worker_test

import (
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// A failed job whose end no worker has heard of is counted, until it is replayed.
func TestHousekeeping(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	ledgertest.Exec(t, pool, `UPDATE jobs SET status = 'failed', failure = 'internal_error', finished_at = now()`)
	session := uuid.New()
	ledgertest.Exec(t, pool, `INSERT INTO sessions (id, user_id, created_at) VALUES ($1, $2, now() - interval '1 year')`, session, user)
	registry := prometheus.NewRegistry()
	applier := ledger.NewApplier(pool)
	w := worker.New(worker.Config{
		Metrics: worker.NewMetrics(registry), Log: slog.New(slog.DiscardHandler), Failed: applier, Sessions: auth.NewPruner(pool),
	}, nil)
	wantFailed := func(want float64) {
		t.Helper()
		w.Housekeep(t.Context())
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "passbook_failed_jobs" {
				if got := family.GetMetric()[0].GetGauge().GetValue(); got != want {
					t.Errorf("passbook_failed_jobs is %v, want %v", got, want)
				}
				return
			}
		}
		t.Error("no passbook_failed_jobs")
	}
	wantFailed(1)
	var sessions int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM sessions`).Scan(&sessions); err != nil || sessions != 0 {
		t.Errorf("%d sessions, %v, want none", sessions, err)
	}
	if err := applier.Replay(t.Context(), []uuid.UUID{id}); err != nil {
		t.Fatal(err)
	}
	wantFailed(0)
}
