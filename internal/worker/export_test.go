package worker

import (
	"context"

	"github.com/passbook/passbook/internal/ledger"
)

// How often sweeps believe a ticket, for tests that pass it.
const (
	LongPutOff = longPutOff
	LongUnseen = longUnseen
	SweepEvery = sweepEvery
	Late       = late
)

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }

// BelieveApplied has the worker believe that jobs were applied ahead of their tickets.
func (w *Worker) BelieveApplied(applied ...ledger.Applied) { w.ahead.add(applied) }

// PassAheadLife lets the worker's memory of what was applied ahead age.
func (w *Worker) PassAheadLife() {
	w.ahead.mu.Lock()
	defer w.ahead.mu.Unlock()
	w.ahead.since = w.ahead.since.Add(-aheadLife)
}
