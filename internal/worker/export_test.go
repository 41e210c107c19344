package worker

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
)

// How often sweeps believe a ticket, for tests that pass it.
const (
	LongPutOff = longPutOff
	LongUnseen = longUnseen
	SweepEvery = sweepEvery
	Settled    = settled
	AheadLife  = aheadLife
)

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }

// BelieveApplied has the worker believe that a job was applied ahead of its ticket,
// so long after its accept.
func (w *Worker) BelieveApplied(id uuid.UUID, outcome ledger.Outcome, wait time.Duration) {
	w.ahead.add([]ledger.Applied{{JobID: id, Outcome: outcome, CreatedAt: time.Unix(0, 0), FinishedAt: time.Unix(0, int64(wait))}})
}

// Unapplied is the jobs that the worker does not know to be applied.
func (w *Worker) Unapplied(jobs ...uuid.UUID) []uuid.UUID { return w.ahead.without(jobs) }

// PassAheadLife lets the worker's memory of what was applied ahead age.
func (w *Worker) PassAheadLife() {
	w.ahead.mu.Lock()
	defer w.ahead.mu.Unlock()
	w.ahead.since = w.ahead.since.Add(-aheadLife)
}
