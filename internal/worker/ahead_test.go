package worker_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// A ticket that comes late brings all of its accounts' queued jobs on, in order and
// no more than a turn; the worker knows those that it was ahead of.
func TestAhead(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w := s.sweeper()
	many, few := ledgertest.Account(t, s.pool, s.user, 0), ledgertest.Account(t, s.pool, s.user, 0)
	var manyJobs, fewJobs []uuid.UUID
	for range 100 {
		manyJobs = append(manyJobs, ledgertest.Job(t, s.pool, many, ledger.Deposit, 1))
	}
	for range 3 {
		fewJobs = append(fewJobs, ledgertest.Job(t, s.pool, few, ledger.Deposit, 1))
	}
	<-time.After(worker.Late)
	apply := func(jobs ...uuid.UUID) {
		t.Helper()
		if rest, err := w.Apply(t.Context(), jobs); err != nil || len(rest) > 0 {
			t.Errorf("left %v, %v", rest, err)
		}
	}
	apply(manyJobs[0], fewJobs[0])
	const most = 2 + 32 + 2 // the ticket's own jobs, and a turn ahead beside the accounts' oldest
	if n := s.count(job.Succeeded); n < 2*len(fewJobs) || n > most {
		t.Errorf("applied %d jobs, want all of the short line, some of the long one, and at most %d", n, most)
	}
	if left := w.Unapplied(fewJobs[1:]); len(left) > 0 {
		t.Errorf("%d jobs are not known to be applied", len(left))
	}
	if left := w.Unapplied(manyJobs); len(left) <= len(manyJobs)-most || len(left) == len(manyJobs) {
		t.Errorf("%d of %d jobs are not known to be applied", len(left), len(manyJobs))
	}
	for _, id := range manyJobs {
		apply(id)
	}
	s.drained()
	s.inOrder(many, manyJobs)
	s.inOrder(few, fewJobs)
}

// One that comes in time leaves what came after its job to the next ticket.
func TestAhead_InTime(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	w := s.sweeper()
	testenv.Eventually(t, "a ticket in time", func() bool {
		began := time.Now()
		first := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
		ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
		if _, err := w.Apply(t.Context(), []uuid.UUID{first}); err != nil {
			t.Fatal(err)
		}
		return time.Since(began) < worker.Late && s.count(job.Queued) > 0
	})
}

// What Postgres has forgotten, restored from a backup perhaps, is applied again: the
// sweep's ticket is heard, whatever the worker believes.
func TestAhead_PostgresForgot(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	w := s.sweeper()
	var ids []uuid.UUID
	for range 3 {
		id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
		w.BelieveApplied(ledger.Applied{JobID: id, Outcome: ledger.Succeeded})
		ids = append(ids, id)
	}
	s.run(w)
	s.drained()
	s.inOrder(account, ids)
	if left := w.Unapplied(ids); len(left) > 0 {
		t.Errorf("the worker has forgotten %d of what it believed, and so tells nothing here", len(left))
	}
}

// A failed job may be queued again, so its ticket must be heard; and nothing is
// remembered for long.
func TestAhead_Forgets(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w := s.sweeper()
	succeeded, rejected, failed := uuid.New(), uuid.New(), uuid.New()
	w.BelieveApplied(
		ledger.Applied{JobID: succeeded, Outcome: ledger.Succeeded},
		ledger.Applied{JobID: rejected, Outcome: ledger.Rejected},
		ledger.Applied{JobID: failed, Outcome: ledger.Failed},
	)
	all := []uuid.UUID{succeeded, rejected, failed}
	for passed, want := range [][]uuid.UUID{{failed}, {failed}, all} {
		if got := w.Unapplied(all); !slices.Equal(got, want) {
			t.Errorf("after %d lives %d of three are forgotten, want %d", passed, len(got), len(want))
		}
		w.PassAheadLife()
	}
}
