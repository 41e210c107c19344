package worker_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Where full scans take long, most sweeps read only known accounts and newer jobs. They miss
// only a replayed job, which the next full scan finds.
func TestSweepScansWhatIsKnown(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w, scans := s.sweeper(), 0
	w.OnFullScan(func() error {
		scans++
		return nil
	})
	sweeps := func(n, wantPending int) {
		t.Helper()
		for range n {
			w.FullScanTook(time.Hour)
			w.Sweep(t.Context())
		}
		if got := s.pendingTasks(); got != wantPending {
			t.Errorf("%d tasks after the sweeps, want %d", got, wantPending)
		}
	}
	const settled = 5
	account := func() ledger.Account { return ledgertest.Account(t, s.pool, s.user, 0) }
	failed := account()
	replayed := ledgertest.Job(t, s.pool, failed, ledger.Deposit, 1)
	ledgertest.Exec(t, s.pool, `INSERT INTO failures SELECT account_id, position, job_id, 5, clock_timestamp(), 'internal_error' FROM queue`)
	old := account()
	ledgertest.Job(t, s.pool, old, ledger.Deposit, 1)
	sweeps(settled, 1)
	ledgertest.Job(t, s.pool, old, ledger.Deposit, 1) // behind the known one
	ledgertest.Job(t, s.pool, account(), ledger.Deposit, 1)
	sweeps(settled, 2)
	before := scans
	ledgertest.Replay(t, s.pool, replayed)
	sweeps(settled, 2)
	if scans != before {
		t.Errorf("%d full scans in %d sweeps, want none", scans-before, settled)
	}
	w.FullScanTook(0)
	w.Sweep(t.Context())
	sweeps(2, 3)
}

// After a full scan that Postgres ends because it takes too long, the sweep finds the jobs
// that were accepted since the process started.
func TestSweepWithoutAFullScan(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w := s.sweeper()
	w.OnFullScan(func() error { return &pgconn.PgError{Code: "57014"} })
	ledgertest.Job(t, s.pool, ledgertest.Account(t, s.pool, s.user, 0), ledger.Deposit, 1) // before the start: only a full scan finds it
	const settled = 3
	for range settled {
		w.Sweep(t.Context())
	}
	ledgertest.Job(t, s.pool, ledgertest.Account(t, s.pool, s.user, 0), ledger.Deposit, 1)
	for range 2 {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != 1 {
		t.Errorf("%d tasks, want 1", n)
	}
}
