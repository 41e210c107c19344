package worker

import "context"

// LongPutOff is for tests that pass it.
const LongPutOff = longPutOff

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }
