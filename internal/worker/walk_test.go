package worker_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// slowBacklog is a backlog whose full walks take long, as under a long snapshot.
type slowBacklog struct {
	*job.Backlog
	walks int   // full ones
	err   error // of the full walks
}

func (b *slowBacklog) Heads(ctx context.Context, after, above int64, limit int) ([]job.Head, error) {
	if above == 0 {
		b.walks++
		if b.err != nil {
			return nil, b.err
		}
	}
	return b.Backlog.Heads(ctx, after, above, limit)
}

// slowly makes a worker whose full walks take long.
func (s *system) slowly(err error) (*worker.Worker, *slowBacklog) {
	backlog := &slowBacklog{Backlog: job.NewBacklog(s.pool), err: err}
	return worker.New(worker.Config{
		Applier: ledger.NewApplier(s.pool), Backlog: backlog, Tickets: s.tickets,
		Metrics: worker.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler),
	}, nil), backlog
}

// Where full walks take long, most sweeps look only for what came since, and miss
// nothing but what was replayed, which the next full walk finds.
func TestSweepWalksOn(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w, backlog := s.slowly(nil)
	sweeps := func(n, wantPending int) {
		t.Helper()
		for range n {
			w.WalkedFor(time.Hour)
			w.Sweep(t.Context())
		}
		if got := s.pendingTickets(); got != wantPending {
			t.Errorf("%d tasks after the sweeps, want %d", got, wantPending)
		}
	}
	const settled = 5
	account := func() ledger.Account { return ledgertest.Account(t, s.pool, s.user, 0) }
	failed := account()
	replayed := ledgertest.Job(t, s.pool, failed, ledger.Deposit, 1)
	ledgertest.Exec(t, s.pool, `UPDATE jobs SET status = 'failed', failure = 'internal_error', finished_at = clock_timestamp()`)
	old := account()
	ledgertest.Job(t, s.pool, old, ledger.Deposit, 1)
	sweeps(settled, 1)
	ledgertest.Job(t, s.pool, old, ledger.Deposit, 1) // behind the one that is known
	ledgertest.Job(t, s.pool, account(), ledger.Deposit, 1)
	sweeps(settled, 2)
	known := backlog.walks
	if err := ledger.NewApplier(s.pool).Replay(t.Context(), []uuid.UUID{replayed}); err != nil {
		t.Fatal(err)
	}
	sweeps(settled, 2)
	if backlog.walks != known {
		t.Errorf("%d full walks in %d sweeps, want none", backlog.walks-known, settled)
	}
	w.WalkedFor(0)
	w.Sweep(t.Context())
	sweeps(2, 3)
}

// A full walk that Postgres ends because it takes too long doesn't put off the
// sweep of what was accepted since the process started.
func TestSweepWithoutAFullWalk(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w, _ := s.slowly(&pgconn.PgError{Code: "57014"})
	ledgertest.Job(t, s.pool, ledgertest.Account(t, s.pool, s.user, 0), ledger.Deposit, 1) // before: a full walk's to find
	const settled = 3
	for range settled {
		w.Sweep(t.Context())
	}
	ledgertest.Job(t, s.pool, ledgertest.Account(t, s.pool, s.user, 0), ledger.Deposit, 1)
	for range 2 {
		w.Sweep(t.Context())
	}
	if n := s.pendingTickets(); n != 1 {
		t.Errorf("%d tasks, want 1", n)
	}
}
