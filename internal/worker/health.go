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
	// sweepLate is how old the last sweep may be. A sweep of a long backlog, which then applies accounts
	// itself, takes less.
	sweepLate = time.Minute
)

// health is what the worker knows of its own work: whether applies get through Postgres, and when the
// last sweep was.
type health struct {
	mu      sync.Mutex // guards the fields below
	fault   error      // of the last apply, if it concerns every account; nil after an apply that finished a job
	faultAt time.Time
	sweptAt time.Time // or when the worker was made
}

// concernAll are the reasons that concern the jobs of every account.
var concernAll = map[postgres.Reason]bool{
	postgres.Privilege: true, postgres.ReadOnly: true, postgres.Connection: true, postgres.Resources: true, postgres.Function: true,
}

// applyFailed counts the error of an attempt to apply the notification's account by its reason, and
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
	attrs := []any{"job_id", job.JobID, "account_id", job.AccountID}
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

// noteFault notes the error of an apply, if it concerns every account.
func (h *health) noteFault(err error) {
	if !concernAll[postgres.ReasonOf(err)] {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.faultAt = err, time.Now()
}

// noteApplied notes that an apply has finished a job.
func (h *health) noteApplied() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = nil
}

// noteSwept notes that a sweep has read the queue.
func (h *health) noteSwept() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sweptAt = time.Now()
}

// CheckApplies returns nil where Postgres applies jobs: the last apply had no error that concerns every
// account, and the rights and functions of an apply are there. Without queued jobs only the second
// part says something; rights and functions can be there and an apply still fail, which the first
// part says.
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

// CheckSweep returns an error where no sweep has read the queue within sweepLate.
func (w *Worker) CheckSweep() error {
	w.health.mu.Lock()
	defer w.health.mu.Unlock()
	if since := time.Since(w.health.sweptAt); since > sweepLate {
		return fmt.Errorf("the last sweep that read the queue was %v ago", since.Round(time.Second))
	}
	return nil
}
