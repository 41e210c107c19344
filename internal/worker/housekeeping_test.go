package worker_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// A failed job is counted, also where another process made it fail, until it is replayed.
func TestHousekeeping(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	ledgertest.Exec(t, pool, `INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'internal_error' FROM queue`)
	session := uuid.New()
	ledgertest.Exec(t, pool, `INSERT INTO sessions (id, user_id, created_at) VALUES ($1, $2, now() - interval '1 year')`, session, user)
	registry := prometheus.NewRegistry()
	applier := ledger.NewApplier(pool)
	w := worker.New(worker.Config{
		Metrics: worker.NewMetrics(registry), Log: slog.New(slog.DiscardHandler), Applier: applier, Pruner: auth.NewPruner(pool),
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
	ledgertest.Replay(t, pool, id)
	wantFailed(0)
}

// An error of one part of the housekeeping does not stop the other part. It is logged, but not
// at every step.
func TestHousekeepingPartFails(t *testing.T) {
	t.Parallel()
	for _, part := range []struct {
		name, breaks string // breaks is the statement that makes the part fail
		want         int    // sessions left
	}{
		{"count failed jobs", `ALTER TABLE failures RENAME TO gone`, 0},
		{"prune sessions", `ALTER TABLE refresh_tokens RENAME TO gone`, 1},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			ledgertest.Exec(t, pool, `INSERT INTO sessions (id, user_id, created_at) VALUES ($1, $2, now() - interval '1 year')`,
				uuid.New(), ledgertest.User(t, pool))
			ledgertest.Exec(t, pool, part.breaks)
			var log bytes.Buffer
			w := worker.New(worker.Config{
				Metrics: worker.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.NewTextHandler(&log, nil)),
				Applier: ledger.NewApplier(pool), Pruner: auth.NewPruner(pool),
			}, nil)
			for range 3 {
				w.Housekeep(t.Context())
			}
			var sessions int
			if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM sessions`).Scan(&sessions); err != nil || sessions != part.want {
				t.Errorf("%d sessions, %v, want %d", sessions, err, part.want)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), part.name) {
				t.Errorf("%d warnings, want one that names the part:\n%s", n, log.String())
			}
		})
	}
}
