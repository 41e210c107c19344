// Package worker turns tickets into applied jobs. Its promise: every queued job
// is applied, in its account's order, whatever becomes of its ticket.
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

// Applier applies an account's queued jobs in order, up to the ticket's and at
// most limit of them; more where it did not get that far. ApplyShared does so for
// several accounts, and tells which tickets need another turn, and which it had trouble
// with.
type Applier interface {
	ApplyShared(ctx context.Context, due []ledger.Due, limit int) (applied []ledger.Applied, remaining, troubled []ledger.Due)
	Apply(ctx context.Context, ticket uuid.UUID, limit int) (applied []ledger.Applied, more bool, err error)
}

// Backlog finds the queued jobs in Postgres.
type Backlog interface {
	Newest(ctx context.Context) (position int64, err error)
	Heads(ctx context.Context, after, above int64, limit int) ([]job.Head, error)
	NextHeads(ctx context.Context, known []job.Head) ([]job.Head, error)
	Last(ctx context.Context, head job.Head) (uuid.UUID, error)
	Unlocked(ctx context.Context, heads []job.Head) ([]uuid.UUID, error)
}

// Tickets writes tickets and looks for them.
type Tickets interface {
	Enqueue(ctx context.Context, ticket queue.Task) error
	Find(ctx context.Context, ticket queue.Task) (queue.TaskInfo, error)
	PendingLists(ctx context.Context) queue.PendingLists
}

// Config is what a worker works with.
type Config struct {
	Applier Applier
	Backlog Backlog
	Tickets Tickets
	Metrics *Metrics
	Log     *slog.Logger

	Failed   FailedCounter // nil: failed jobs are not counted
	Sessions Pruner        // nil: sessions are not pruned
}

// Worker applies what tickets name and sweeps for what none names.
type Worker struct {
	cfg      Config
	batcher  *batcher
	stopping <-chan struct{}      // closed when no new try should start
	suspects map[int64]suspect    // by account id; the sweep's
	walk     walk                 // the sweep's
	warned   map[string]time.Time // by the housekeeping, of each of its parts
}

// New makes a worker that gives up waiting for Postgres when stopping is closed.
func New(cfg Config, stopping <-chan struct{}) *Worker {
	return &Worker{cfg: cfg, batcher: newBatcher(cfg.Applier), stopping: stopping, suspects: map[int64]suspect{}, walk: walk{most: maxSwept}, warned: map[string]time.Time{}}
}

// Run sweeps and keeps house until ctx ends.
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
