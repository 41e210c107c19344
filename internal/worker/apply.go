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
	// maxBatchJobs is about how many jobs a batch applies; the others follow in the next one. It
	// applies at least one job of each of its accounts.
	maxBatchJobs = 64
	// downPause is the pause between two attempts while Postgres is down. The task stays active
	// meanwhile: every other task would get the same error.
	downPause = 250 * time.Millisecond
)

// sharedApplier is *ledger.Applier. It is an interface because the batcher's tests decide when
// each batch ends.
type sharedApplier interface {
	ApplyShared(ctx context.Context, due []ledger.Due, limit int) (applied []ledger.Applied, remaining []ledger.Due, troubled []ledger.Troubled)
}

// Apply is the queue's handler. It applies the account of each job up to that job, and about
// maxBatchJobs jobs in all. It returns in remaining the jobs whose accounts have more to apply,
// and in troubled those whose accounts had an error. It tries a locked account twice: first
// together with the others, then by itself. So a locked account delays the others by twice
// Postgres's lock_timeout.
//
// After a kill before Postgres has the batch, the jobs stay queued. The next task of the
// account applies them, or the sweep's task does.
func (w *Worker) Apply(ctx context.Context, jobs []queue.Notification) (remaining, troubled []queue.Notification, err error) {
	failpoint.Hit(failpoint.TaskReceived)
	w.origins.remember(jobs) //nolint:contextcheck // the origins come from the notifications, not from the task's context
	jobs = queue.Merge(jobs)
	batch := w.batcher.apply(ctx, toDue(jobs))
	w.record(batch.applied) //nolint:contextcheck // the jobs are recorded even if the context has ended
	remaining = stillDue(jobs, batch.remaining)
	retried, first := splitTroubled(batch.troubled)
	retriedJobs := stillDue(jobs, retried)
	var unknown error
	for _, one := range retriedJobs {
		more, oneErr := w.applyOne(ctx, one, max(maxBatchJobs/len(retriedJobs), 1))
		if err := first[one.JobID]; oneErr == nil && !postgres.IsDataFault(err) && !errors.Is(err, ledger.ErrJobNotFound) {
			w.applyFailed(one, err) // the first error; applyOne has logged an error of the second try
		}
		switch {
		case errors.Is(oneErr, queue.ErrUnknownJob):
			w.cfg.Metrics.unknown.Inc()
			troubled, unknown = append(troubled, one), oneErr
		case postgres.IsDown(oneErr): // the worker stops, or the task's time is over
			return nil, nil, oneErr // all jobs are tried again
		case oneErr != nil: // this account's own
			troubled, err = append(troubled, one), oneErr
		case more:
			remaining = append(remaining, one)
		}
	}
	return remaining, troubled, cmp.Or(err, unknown)
}

func toDue(jobs []queue.Notification) (due []ledger.Due) {
	for _, n := range jobs {
		due = append(due, ledger.Due{JobID: n.JobID, Jobs: n.Jobs})
	}
	return due
}

// splitTroubled returns the jobs of the accounts that had an error, and the error of each.
func splitTroubled(troubled []ledger.Troubled) (due []ledger.Due, errs map[uuid.UUID]error) {
	errs = make(map[uuid.UUID]error, len(troubled))
	for _, t := range troubled {
		due, errs[t.JobID] = append(due, t.Due), t.Err
	}
	return due, errs
}

// stillDue returns the notifications of the jobs in due, with the counts of due.
func stillDue(jobs []queue.Notification, due []ledger.Due) (still []queue.Notification) {
	counts := make(map[uuid.UUID]int, len(due))
	for _, d := range due {
		counts[d.JobID] = d.Jobs
	}
	for _, n := range jobs {
		if count, found := counts[n.JobID]; found {
			n.Jobs = count
			still = append(still, n)
		}
	}
	return still
}

// applyOne applies the notification's account up to its job, and at most limit jobs. While Postgres
// is down it waits and applies again. It counts and logs each error but that of an unknown job.
func (w *Worker) applyOne(ctx context.Context, one queue.Notification, limit int) (more bool, err error) {
	for {
		applied, more, err := w.cfg.Applier.Apply(ctx, one.JobID, limit)
		w.record(applied) //nolint:contextcheck // as in Apply
		if errors.Is(err, ledger.ErrJobNotFound) {
			return false, fmt.Errorf("%w: %w", queue.ErrUnknownJob, err)
		}
		if err != nil {
			w.health.recordFault(err)
			w.applyFailed(one, err)
		}
		switch {
		case errors.Is(err, ledger.ErrRefused):
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

// record counts the finished jobs, logs the failed ones, and publishes all of them: their ends
// are flushed. After a kill before the message is sent, no API hears of them. The APIs find them
// with their own look into Postgres, about a second later, and answer the clients that wait.
func (w *Worker) record(applied []ledger.Applied) {
	if len(applied) == 0 {
		return
	}
	finished := make([]queue.Finished, len(applied))
	for i, job := range applied {
		finished[i] = queue.Finished{JobID: job.JobID, AccountID: job.AccountID}
		if job.Outcome == ledger.Failed {
			w.jobFailed(job)
		}
	}
	w.health.recordApplied()
	w.cfg.Metrics.finished(applied, w.origins.traceOf)
	w.reportFinished(applied)
	w.cfg.Publisher.Publish(finished)
}

// IsFailure is true for an error that counts as an attempt of the task: Postgres refused a job of
// its accounts, or the task names an unknown job. It is false for any other error.
func IsFailure(err error) bool {
	return errors.Is(err, ledger.ErrRefused) || errors.Is(err, queue.ErrUnknownJob)
}
