package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// turn is how many jobs one ticket may apply, beside the oldest of each of
	// its accounts, before the partition's other accounts have theirs.
	turn = 64
	// downPause is how long a partition waits before it asks a Postgres that
	// is down again. The ticket stays in hand: every other would fare no better.
	downPause = 250 * time.Millisecond
)

// Apply is the queue's handler: it applies the account of each job up to that job, a turn
// at most. remaining are the jobs whose accounts need another one. One account's trouble
// is told. An account that is locked holds the others up for Postgres's lock_timeout, twice:
// beside them and once more by itself.
//
// A kill before Postgres has heard of it leaves the jobs queued; the account's
// next task applies them, or the sweep's does.
func (w *Worker) Apply(ctx context.Context, jobs []queue.Notification) (remaining, troubled []queue.Notification, err error) {
	failpoint.Hit(failpoint.TaskReceived)
	jobs = queue.Merge(jobs)
	batch := w.batcher.apply(ctx, due(jobs))
	w.tell(batch.applied)
	remaining, left := those(jobs, batch.remaining), those(jobs, batch.troubled)
	var unknown error
	for _, one := range left {
		more, oneErr := w.applyOne(ctx, one.JobID, max(turn/len(left), 1))
		switch {
		case errors.Is(oneErr, queue.ErrUnknownJob):
			w.cfg.Metrics.unknown.Inc()
			troubled, unknown = append(troubled, one), oneErr
		case postgres.IsDown(oneErr): // and we are told to stop
			return nil, nil, oneErr // all come back
		case oneErr != nil: // this account's own
			troubled, err = append(troubled, one), oneErr
		case more:
			remaining = append(remaining, one)
		}
	}
	return remaining, troubled, cmp.Or(err, unknown)
}

func due(jobs []queue.Notification) (due []ledger.Due) {
	for _, n := range jobs {
		due = append(due, ledger.Due{JobID: n.JobID, Jobs: n.Jobs})
	}
	return due
}

// those are the notifications of what is due still.
func those(jobs []queue.Notification, due []ledger.Due) (still []queue.Notification) {
	left := make(map[uuid.UUID]int, len(due))
	for _, d := range due {
		left[d.JobID] = d.Jobs
	}
	for _, n := range jobs {
		if count, is := left[n.JobID]; is {
			n.Jobs = count
			still = append(still, n)
		}
	}
	return still
}

// applyOne applies the job's account up to the job, and at most limit jobs.
// While Postgres is down it waits and applies again.
func (w *Worker) applyOne(ctx context.Context, id uuid.UUID, limit int) (more bool, err error) {
	for {
		applied, more, err := w.cfg.Applier.Apply(ctx, id, limit)
		w.tell(applied)
		switch {
		case errors.Is(err, ledger.ErrJobNotFound):
			return false, fmt.Errorf("%w: %w", queue.ErrUnknownJob, err)
		case errors.Is(err, ledger.ErrRefused):
			w.cfg.Log.Warn("job refused; it will be tried again", "ticket", id, "error", err)
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
// own account's jobs and of jobs that are unknown, not Postgres's.
func IsFailure(err error) bool {
	return errors.Is(err, ledger.ErrRefused) || errors.Is(err, queue.ErrUnknownJob)
}
