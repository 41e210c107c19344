// Package worker applies the jobs that tasks name. Its promise: every queued job is applied,
// in its account's order, whatever becomes of its task.
package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
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
	Pruner    Pruner       // of sessions; may be nil
	Tracer    trace.Tracer // nil for no traces
}

// Worker applies the jobs that tasks name, and sweeps for jobs that no task names.
type Worker struct {
	cfg      Config
	batcher  *batcher
	health   *health
	stopping <-chan struct{}   // closed when no attempt should start any more
	accounts map[int64]watched // the accounts with queued jobs, by id, at the last sweep; only sweeps use it
	scan     scan              // only sweeps use it
	warner   *warner
	lines    *ops.Lines // of finished jobs whose requests are known, which have lines too
	others   *ops.Lines // of other finished jobs
	origins  *origins
}

// New makes a worker. It stops waiting for Postgres when stopping is closed.
func New(cfg Config, stopping <-chan struct{}) *Worker {
	return &Worker{
		cfg: cfg, batcher: newBatcher(cfg.Applier), health: &health{sweptAt: time.Now()}, stopping: stopping,
		accounts: map[int64]watched{}, warner: newWarner(cfg.Log),
		lines: ops.NewLines(cfg.Log, finishedLine), others: ops.NewLines(cfg.Log, finishedLine), origins: newOrigins(),
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
