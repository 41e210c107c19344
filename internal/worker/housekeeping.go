package worker

import (
	"context"
	"time"
)

const (
	// housekeepEvery is the pause between two steps of the housekeeping.
	housekeepEvery = 5 * time.Second
	// housekeepTimeout bounds a step, on a connection that swallows everything too.
	housekeepTimeout = 5 * time.Second
)

// FailedCounter counts the failed jobs in Postgres, up to a bound.
type FailedCounter interface {
	CountFailed(ctx context.Context) (int, error)
}

// Pruner deletes a bounded number of sessions that are over.
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

// housekeep is one step. What it can't do now it does in a later one, or another worker does.
func (w *Worker) housekeep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, housekeepTimeout)
	defer cancel()
	if w.cfg.Failed != nil {
		failed, err := w.cfg.Failed.CountFailed(ctx)
		if err != nil {
			w.cfg.Log.Debug("housekeeping put off", "error", err)
			return
		}
		w.cfg.Metrics.failed.Set(float64(failed))
	}
	if w.cfg.Sessions != nil {
		if _, err := w.cfg.Sessions.Prune(ctx); err != nil {
			w.cfg.Log.Debug("housekeeping put off", "error", err)
		}
	}
}
