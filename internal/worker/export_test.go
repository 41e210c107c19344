package worker

import "context"

// How often sweeps believe a ticket, for tests that pass it.
const (
	LongPutOff = longPutOff
	LongUnseen = longUnseen
	SweepEvery = sweepEvery
)

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }
