package worker_test

import (
	"context"
	"fmt"
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
	<-time.After(worker.Settled)
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
		return time.Since(began) < worker.Settled && s.count(job.Queued) > 0
	})
}

// What Postgres has forgotten, restored from a backup perhaps, is not taken for
// applied for ever: the sweep sees the oldest of it queued, and the newest.
func TestAhead_PostgresForgot(t *testing.T) {
	t.Parallel()
	for _, believed := range []int{0, 1, 2} {
		t.Run(fmt.Sprint(believed), func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			account := ledgertest.Account(t, s.pool, s.user, 0)
			const jobs = 3
			var ids []uuid.UUID
			for range jobs {
				ids = append(ids, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
			}
			w := s.sweeper()
			w.BelieveApplied(ids[believed], ledger.Succeeded, time.Second)
			if _, err := w.Apply(t.Context(), ids[believed:believed+1]); err != nil || s.count(job.Queued) != jobs {
				t.Fatalf("%d of %d jobs are queued, %v; one of them is believed to be applied", s.count(job.Queued), jobs, err)
			}
			for range 2 {
				w.Sweep(t.Context())
			}
			// What the sweep rings for.
			if _, err := w.Apply(t.Context(), ids[jobs-1:]); err != nil || s.count(job.Queued) != 0 {
				t.Errorf("%d jobs are queued, %v", s.count(job.Queued), err)
			}
		})
	}
}

// A failed job may be queued again, and the ticket of one just accepted may be an
// elder's too, so theirs must be heard; and nothing is remembered for long.
func TestAhead_Forgets(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	w := s.sweeper()
	succeeded, rejected, failed, fresh := uuid.New(), uuid.New(), uuid.New(), uuid.New()
	w.BelieveApplied(succeeded, ledger.Succeeded, 2*worker.Settled)
	w.BelieveApplied(rejected, ledger.Rejected, 2*worker.Settled)
	w.BelieveApplied(failed, ledger.Failed, 2*worker.Settled)
	w.BelieveApplied(fresh, ledger.Succeeded, worker.Settled)
	for passed, want := range [][]uuid.UUID{{failed, fresh}, {failed, fresh}, {succeeded, rejected, failed, fresh}} {
		if got := w.Unapplied(succeeded, rejected, failed, fresh); !slices.Equal(got, want) {
			t.Errorf("after %d lives %d of four are forgotten, want %d", passed, len(got), len(want))
		}
		w.PassAheadLife()
	}
}
