package worker

import (
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
	// turn is how many jobs one ticket may apply before the partition's other
	// accounts have theirs.
	turn = 64
	// downPause is how long a partition waits before it asks a Postgres that
	// is down again. The ticket stays in hand: every other would fare no better.
	downPause = 250 * time.Millisecond
)

// Apply is the queue's handler: it applies the ticket's account up to the
// ticket's job, a turn at most, and asks for more where that was not enough.
//
// A kill before Postgres has heard of it leaves the jobs queued; the account's
// next ticket takes them, or the sweep's does.
func (w *Worker) Apply(ctx context.Context, jobID uuid.UUID) (more bool, err error) {
	crash.At(crash.TicketTaken)
	for {
		applied, more, err := w.cfg.Applier.Apply(ctx, jobID, turn)
		for _, job := range applied {
			w.cfg.Metrics.finished(job)
			if job.Outcome == ledger.Failed {
				w.cfg.Log.Error("job failed; mend the reason, then replay it", "job_id", job.JobID)
			}
		}
		switch {
		case errors.Is(err, ledger.ErrJobNotFound):
			return false, fmt.Errorf("%w: %w", queue.ErrBadTicket, err)
		case errors.Is(err, ledger.ErrRefused):
			w.cfg.Log.Warn("job refused; it will be tried again", "ticket", jobID, "error", err)
			return false, err
		case !postgres.IsDown(err):
			return more, err
		}
		w.cfg.Metrics.postgresDown.Inc()
		select {
		case <-time.After(downPause):
		case <-ctx.Done():
			return false, err
		case <-w.stopping:
			return false, err
		}
	}
}

// IsFailure tells the errors that spend one of a ticket's tries: those of its
// own account's jobs, not Postgres's.
func IsFailure(err error) bool {
	return errors.Is(err, ledger.ErrRefused) || errors.Is(err, queue.ErrBadTicket)
}
