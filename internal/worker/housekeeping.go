package worker

import (
	"context"
	"time"
)

const (
	// housekeepEvery is the pause between two steps of the housekeeping.
	housekeepEvery = 5 * time.Second
	// housekeepTimeout bounds each part of a step, also on a connection that swallows
	// everything.
	housekeepTimeout = 5 * time.Second
)

// Pruner deletes a bounded number of sessions that have ended. It is an interface, because
// this package does not import auth.
type Pruner interface {
	Prune(ctx context.Context) (deleted int64, err error)
}

// keepHouse does the housekeeping until ctx ends.
func (w *Worker) keepHouse(ctx context.Context) {
	for {
		w.housekeep(ctx)
		select {
		case <-time.After(housekeepEvery):
		case <-ctx.Done():
			return
		}
	}
}

// housekeep is one step. The error of a part does not stop the other parts. The next step tries the
// part again, and so do the other workers.
func (w *Worker) housekeep(ctx context.Context) {
	w.keep(ctx, "count failed jobs", func(ctx context.Context) error {
		failed, err := w.cfg.Applier.CountFailed(ctx)
		if err == nil {
			w.cfg.Metrics.failed.Set(float64(failed))
		}
		return err
	})
	if w.cfg.Pruner != nil {
		w.keep(ctx, "prune sessions", func(ctx context.Context) error {
			_, err := w.cfg.Pruner.Prune(ctx)
			return err
		})
	}
}

// keep does one part. It warns when the part fails.
func (w *Worker) keep(ctx context.Context, part string, do func(context.Context) error) {
	limited, cancel := context.WithTimeout(ctx, housekeepTimeout)
	defer cancel()
	err := do(limited)
	if err != nil && ctx.Err() == nil {
		w.warner.warn(part, "housekeeping failed", "part", part, "error", err)
	}
}
