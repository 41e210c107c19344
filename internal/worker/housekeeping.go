package worker

import (
	"context"
	"time"
)

const (
	// housekeepEvery is the pause between two steps of the housekeeping.
	housekeepEvery = 5 * time.Second
	// housekeepTimeout bounds each part of a step, on a connection that swallows
	// everything too.
	housekeepTimeout = 5 * time.Second
	// housekeepWarnEvery is the least time between two warnings of a part that fails.
	housekeepWarnEvery = time.Minute
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

// housekeep is one step. What it can't do now it does in a later one, or another worker
// does; an error of one part doesn't keep the other from its work.
func (w *Worker) housekeep(ctx context.Context) {
	if w.cfg.Failed != nil {
		w.keep(ctx, "count failed jobs", func(ctx context.Context) error {
			failed, err := w.cfg.Failed.CountFailed(ctx)
			if err == nil {
				w.cfg.Metrics.failed.Set(float64(failed))
			}
			return err
		})
	}
	if w.cfg.Sessions != nil {
		w.keep(ctx, "prune sessions", func(ctx context.Context) error {
			_, err := w.cfg.Sessions.Prune(ctx)
			return err
		})
	}
}

// keep does one part, and warns where it fails.
func (w *Worker) keep(ctx context.Context, part string, do func(context.Context) error) {
	limited, cancel := context.WithTimeout(ctx, housekeepTimeout)
	defer cancel()
	err := do(limited)
	if err == nil || ctx.Err() != nil || time.Since(w.warned[part]) < housekeepWarnEvery {
		return
	}
	w.warned[part] = time.Now()
	w.cfg.Log.Warn("housekeeping put off", "part", part, "error", err)
}
