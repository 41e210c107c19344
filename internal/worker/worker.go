// Package worker applies the jobs that tasks name. Its promise: every queued job is applied,
// in its account's order, whatever becomes of its task.
package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/queue"
)

// Config is what a worker works with.
type Config struct {
	Applier   *ledger.Applier
	Backlog   *job.Backlog
	Queue     *queue.Client
	Publisher *queue.Publisher
	Metrics   *Metrics
	Log       *slog.Logger
	Pruner    Pruner // of sessions; may be nil

	// TraceOf returns the id of a job's trace, empty for none; nil without traces.
	TraceOf func(job uuid.UUID) string
}

// Worker applies the jobs that tasks name, and sweeps for jobs that no task names.
type Worker struct {
	cfg      Config
	batcher  *batcher
	health   *health
	stopping <-chan struct{}      // closed when no attempt should start any more
	accounts map[int64]watched    // the accounts with queued jobs, by id, at the last sweep; only sweeps use it
	scan     scan                 // only sweeps use it
	warned   map[string]time.Time // the last warning of each part of the housekeeping; only that uses it
}

// New makes a worker. It stops waiting for Postgres when stopping is closed.
func New(cfg Config, stopping <-chan struct{}) *Worker {
	return &Worker{
		cfg: cfg, batcher: newBatcher(cfg.Applier), health: &health{sweptAt: time.Now()}, stopping: stopping,
		accounts: map[int64]watched{}, warned: map[string]time.Time{},
		scan: scan{most: maxSwept, page: cfg.Backlog.OldestQueued},
	}
}

// Run sweeps and does the housekeeping until ctx ends.
func (w *Worker) Run(ctx context.Context) error {
	var housekeeping sync.WaitGroup
	housekeeping.Go(func() { w.keepHouse(ctx) })
	defer housekeeping.Wait()
	for {
		started := time.Now()
		w.sweep(ctx)
		pause := max(sweepEvery, min(sweepShare*time.Since(started), longestSweepPause))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}
