package worker_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// counting counts how often Postgres is asked to apply something.
type counting struct {
	*ledger.Applier
	asked atomic.Int64
}

func (c *counting) ApplyHeads(ctx context.Context, tickets []uuid.UUID) (applied []ledger.Applied, left []uuid.UUID) {
	c.asked.Add(1)
	return c.Applier.ApplyHeads(ctx, tickets)
}

func (c *counting) Apply(ctx context.Context, ticket uuid.UUID, limit int) (applied []ledger.Applied, more bool, err error) {
	c.asked.Add(1)
	return c.Applier.Apply(ctx, ticket, limit)
}

// A ticket that comes late brings all of its accounts' queued jobs on, in order and
// no more than a turn; the tickets of those that it was ahead of end without asking
// Postgres.
func TestAhead(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	applier := &counting{Applier: ledger.NewApplier(s.pool)}
	w := s.applying(applier)
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
	if left := w.Unapplied(fewJobs[1:]...); len(left) > 0 {
		t.Errorf("%d jobs are not known to be applied", len(left))
	}
	asked := applier.asked.Load()
	apply(fewJobs[1], manyJobs[1])
	apply(fewJobs[2])
	if n := applier.asked.Load(); n != asked {
		t.Errorf("asked %d times for what was applied ahead", n-asked)
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

// What Postgres has forgotten, restored from a backup perhaps, is not taken for
// applied for ever: the sweep sees it queued.
func TestAhead_PostgresForgot(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
	w := s.sweeper()
	w.BelieveApplied(ledger.Applied{JobID: id, Outcome: ledger.Succeeded})
	if _, err := w.Apply(t.Context(), []uuid.UUID{id}); err != nil || s.count(job.Queued) != 1 {
		t.Fatalf("applied what is believed to be applied, %v", err)
	}
	for range 2 {
		w.Sweep(t.Context())
	}
	if _, err := w.Apply(t.Context(), []uuid.UUID{id}); err != nil || s.count(job.Queued) != 0 {
		t.Errorf("%d jobs are queued, %v", s.count(job.Queued), err)
	}
}

// A failed job may be queued again, so its next ticket must be heard; and nothing
// is remembered for long.
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
	for passed, want := range [][]uuid.UUID{{failed}, {failed}, {succeeded, rejected, failed}} {
		if got := w.Unapplied(succeeded, rejected, failed); !slices.Equal(got, want) {
			t.Errorf("after %d lives %d of three are forgotten, want %d", passed, len(got), len(want))
		}
		w.PassAheadLife()
	}
}
