package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
)

const (
	// faultLasts is how long an error of an apply counts if no apply succeeds. While jobs are queued,
	// the next attempt follows within a few seconds.
	faultLasts = 30 * time.Second
	// maxSweepAge is how old the last sweep may be. Even a sweep that reads a long backlog and applies
	// accounts itself takes less.
	maxSweepAge = time.Minute
)

// health records whether Postgres lets the worker apply jobs, and when the last sweep was.
type health struct {
	mu      sync.Mutex // guards the fields below
	fault   error      // of the last apply, if it concerns every account; nil after an apply that finished a job
	faultAt time.Time
	sweptAt time.Time // the last sweep; before the first, when the worker was made
}

// concernAll has the reasons that concern the jobs of every account.
var concernAll = map[postgres.Reason]bool{
	postgres.Privilege: true, postgres.ReadOnly: true, postgres.Connection: true, postgres.Resources: true, postgres.Function: true,
}

// applyFailed counts an error of an attempt to apply the notification's account by its reason, and
// logs it. The logger bounds the lines.
func (w *Worker) applyFailed(n queue.Notification, err error) {
	reason := postgres.ReasonOf(err)
	w.cfg.Metrics.errors.WithLabelValues(string(reason)).Inc()
	if refusal, ok := errors.AsType[*ledger.Refusal](err); ok {
		w.cfg.Log.Warn("job refused", append(refusalAttrs(refusal), "account_id", n.AccountID)...)
		return
	}
	w.cfg.Log.Warn("apply failed; it is tried again",
		"job_id", n.JobID, "account_id", n.AccountID, "reason", string(reason), "sqlstate", postgres.SQLState(err), "error", err)
}

// jobFailed logs a job that has had its last attempt.
func (w *Worker) jobFailed(job ledger.Applied) {
	attrs := []any{"job_id", job.JobID, "account", job.Account, "account_id", job.AccountID}
	if job.Refusal != nil {
		w.cfg.Metrics.errors.WithLabelValues(string(postgres.ReasonOf(job.Refusal))).Inc()
		attrs = append(refusalAttrs(job.Refusal), "account_id", job.AccountID)
	}
	w.cfg.Log.Error("job failed", attrs...)
}

func refusalAttrs(refusal *ledger.Refusal) []any {
	return []any{
		"job_id", refusal.JobID, "account", refusal.Account, "attempt", refusal.Attempt,
		"reason", string(postgres.ReasonOf(refusal)), "sqlstate", postgres.SQLState(refusal), "error", refusal.Err,
	}
}

// recordFault keeps the error of an apply, if it concerns every account.
func (h *health) recordFault(err error) {
	if !concernAll[postgres.ReasonOf(err)] {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.faultAt = err, time.Now()
}

// recordApplied forgets the fault: an apply has finished a job.
func (h *health) recordApplied() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = nil
}

// recordSweep keeps the time of a sweep that has read the queue.
func (h *health) recordSweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sweptAt = time.Now()
}

// CheckApplies returns an error if the last apply had an error that concerns every account, or if an
// apply lacks a right or a function. The second check also works while no job is queued. The first
// one sees faults that the rights don't show.
func (w *Worker) CheckApplies(ctx context.Context) error {
	if err := w.health.lastFault(); err != nil {
		return err
	}
	return w.cfg.Applier.CheckApply(ctx)
}

// lastFault returns the fault of the last apply, unless that was long ago.
func (h *health) lastFault() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.faultAt) > faultLasts {
		return nil
	}
	return h.fault
}

// CheckSweep returns an error if no sweep has read the queue within maxSweepAge.
func (w *Worker) CheckSweep() error {
	w.health.mu.Lock()
	defer w.health.mu.Unlock()
	if since := time.Since(w.health.sweptAt); since > maxSweepAge {
		return fmt.Errorf("the last sweep that read the queue was %v ago", since.Round(time.Second))
	}
	return nil
}
