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
	// downPause is how long a partition waits before it asks a Postgres that
	// is down again. The ticket stays in hand: every other would fare no better.
	downPause = 250 * time.Millisecond
)

// Apply is the queue's handler: it applies the account of each of the ticket's
// jobs up to that job, a turn at most. rest are the jobs whose accounts need
// another one. One account's trouble is told, and holds up no other.
//
// A kill before Postgres has heard of it leaves the jobs queued; the account's
// next ticket takes them, or the sweep's does.
func (w *Worker) Apply(ctx context.Context, jobs []uuid.UUID) (rest []uuid.UUID, err error) {
	crash.At(crash.TicketTaken)
	left := jobs
	if len(jobs) > 1 {
		err := w.untilPostgresIsUp(ctx, func() (applied []ledger.Applied, err error) {
			applied, left, err = w.cfg.Applier.ApplyHeads(ctx, jobs)
			return applied, err
		})
		if err != nil {
			return nil, err
		}
	}
	var bad error
	for _, id := range left {
		more, oneErr := w.applyOne(ctx, id, max(turn/len(left), 1))
		switch {
		case errors.Is(oneErr, queue.ErrBadTicket):
			bad = oneErr
		case errors.Is(oneErr, ledger.ErrRefused):
			err = oneErr
		case oneErr != nil:
			return nil, oneErr // the ticket comes back, with all its jobs
		case more:
			rest = append(rest, id)
		}
	}
	return rest, cmp.Or(err, bad)
}

// applyOne applies the job's account up to the job, and at most limit jobs.
func (w *Worker) applyOne(ctx context.Context, id uuid.UUID, limit int) (more bool, err error) {
	err = w.untilPostgresIsUp(ctx, func() (applied []ledger.Applied, err error) {
		applied, more, err = w.cfg.Applier.Apply(ctx, id, limit)
		return applied, err
	})
	switch {
	case errors.Is(err, ledger.ErrJobNotFound):
		err = fmt.Errorf("%w: %w", queue.ErrBadTicket, err)
	case errors.Is(err, ledger.ErrRefused):
		w.cfg.Log.Warn("job refused; it will be tried again", "ticket", id, "error", err)
	}
	return more, err
}

// untilPostgresIsUp applies, and while that fails because Postgres is down, it
// waits and applies again. It tells of all that was finished.
func (w *Worker) untilPostgresIsUp(ctx context.Context, apply func() ([]ledger.Applied, error)) error {
	for {
		applied, err := apply()
		for _, job := range applied {
			w.cfg.Metrics.finished(job)
			if job.Outcome == ledger.Failed {
				w.cfg.Log.Error("job failed; mend the reason, then replay it", "job_id", job.JobID)
			}
		}
		if !postgres.IsDown(err) {
			return err
		}
		w.cfg.Metrics.postgresDown.Inc()
		select {
		case <-time.After(downPause):
		case <-ctx.Done():
			return err
		case <-w.stopping:
			return err
		}
	}
}

// IsFailure tells the errors that spend one of a ticket's tries: those of its
// own account's jobs, not Postgres's.
func IsFailure(err error) bool {
	return errors.Is(err, ledger.ErrRefused) || errors.Is(err, queue.ErrBadTicket)
}
