package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/crash"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
)

const (
	// turn is how many jobs one ticket may apply, beside the oldest of each of
	// its accounts, before the partition's other accounts have theirs.
	turn = 64
	// aheadTurn is how many it applies ahead of theirs.
	aheadTurn = 32
	// downPause is how long a partition waits before it asks a Postgres that
	// is down again. The ticket stays in hand: every other would fare no better.
	downPause = 250 * time.Millisecond
)

// Apply is the queue's handler: it applies the account of each of the ticket's
// jobs up to that job, a turn at most. rest are the jobs whose accounts need
// another one. One account's trouble is told, and holds the others up for no longer
// than Postgres's lock_timeout, once in the flush and once by itself.
//
// Where it comes late, it goes on with what has been accepted since: see goAhead.
//
// A kill before Postgres has heard of it leaves the jobs queued; the account's
// next ticket takes them, or the sweep's does.
func (w *Worker) Apply(ctx context.Context, jobs []uuid.UUID) (rest []uuid.UUID, err error) {
	crash.At(crash.TicketTaken)
	applied, rest, err := w.apply(ctx, jobs, turn)
	if err == nil && len(rest) == 0 && isLate(applied) {
		w.goAhead(ctx, jobs)
	}
	return rest, err
}

// apply applies the account of each of the jobs up to that job, and at most turn jobs
// beside the oldest of each account.
func (w *Worker) apply(ctx context.Context, jobs []uuid.UUID, turn int) (applied []ledger.Applied, rest []uuid.UUID, err error) {
	left := jobs
	if len(jobs) > 1 {
		applied, left = w.cfg.Applier.ApplyHeads(ctx, jobs)
		w.tell(applied)
	}
	var bad error
	for _, id := range left {
		some, more, oneErr := w.applyOne(ctx, id, max(turn/len(left), 1))
		applied = append(applied, some...)
		switch {
		case errors.Is(oneErr, queue.ErrBadTicket):
			bad = oneErr
		case postgres.IsDown(oneErr): // and we are told to stop
			return applied, nil, oneErr // the ticket comes back, with all its jobs
		case oneErr != nil: // this account's own
			err = oneErr
		case more:
			rest = append(rest, id)
		}
	}
	return applied, rest, cmp.Or(err, bad)
}

// goAhead applies what the accounts of a ticket's jobs have queued meanwhile, still in
// order: a flush is cheaper than a ticket for each, and those find that their jobs were
// applied ahead of them. Without it an account that is asked for more often than its
// partition works tickets off holds all its neighbours up.
//
// Nothing depends on it: what it leaves, for whatever reason, has tickets of its own,
// or the sweep's. A kill leaves what one in Apply does.
func (w *Worker) goAhead(ctx context.Context, jobs []uuid.UUID) {
	newest, err := w.newest(ctx, jobs)
	if err != nil || len(newest) == 0 {
		return
	}
	applied, _, _ := w.apply(ctx, newest, aheadTurn)
	w.ahead.add(applied)
}

// Unapplied is the jobs that are not known to be applied ahead of their tickets. Of
// those that are, so are the jobs that were accepted before, as far as they were
// committed.
func (w *Worker) Unapplied(jobs []uuid.UUID) []uuid.UUID { return w.ahead.without(jobs) }

// newest waits no longer than an apply does for a connection that swallows everything.
func (w *Worker) newest(ctx context.Context, jobs []uuid.UUID) ([]uuid.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, postgres.RoundTripTimeout)
	defer cancel()
	return w.cfg.Backlog.Newest(ctx, jobs)
}

// applyOne applies the job's account up to the job, and at most limit jobs.
// While Postgres is down it waits and applies again.
func (w *Worker) applyOne(ctx context.Context, id uuid.UUID, limit int) (applied []ledger.Applied, more bool, err error) {
	for {
		some, more, err := w.cfg.Applier.Apply(ctx, id, limit)
		w.tell(some)
		applied = append(applied, some...)
		switch {
		case errors.Is(err, ledger.ErrJobNotFound):
			return applied, false, fmt.Errorf("%w: %w", queue.ErrBadTicket, err)
		case errors.Is(err, ledger.ErrRefused):
			w.cfg.Log.Warn("job refused; it will be tried again", "ticket", id, "error", err)
			return applied, false, err
		case !postgres.IsDown(err):
			return applied, more, err
		}
		w.cfg.Metrics.postgresDown.Inc()
		select {
		case <-time.After(downPause):
		case <-ctx.Done():
			return applied, false, err
		case <-w.stopping:
			return applied, false, err
		}
	}
}

// tell counts what was finished, and says what failed.
func (w *Worker) tell(applied []ledger.Applied) {
	for _, job := range applied {
		w.cfg.Metrics.finished(job)
		if job.Outcome == ledger.Failed {
			w.cfg.Log.Error("job failed; mend the reason, then replay it", "job_id", job.JobID)
		}
	}
}

// IsFailure tells the errors that spend one of a ticket's tries: those of its
// own account's jobs, not Postgres's.
func IsFailure(err error) bool {
	return errors.Is(err, ledger.ErrRefused) || errors.Is(err, queue.ErrBadTicket)
}
