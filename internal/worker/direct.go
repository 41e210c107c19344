package worker

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// directAppliers is how many groups of accounts a sweep applies at once where Redis
	// refuses: a quarter of the worker's connections.
	directAppliers = 4
	// directShare bounds the accounts of a group. Few accounts make directGroups groups.
	directShare  = 16
	directGroups = 4 * directAppliers
	// directBatches bounds the batches of a group.
	directBatches = 32
	// directFor is how long a sweep applies accounts before it reads the queue again.
	directFor = 5 * time.Second
)

// applyStalled applies accounts that no task will apply, for about directFor. The next sweep
// applies those that are not reached. Each sweep takes its groups in a random order, and few
// at once, so that workers seldom meet at an account, and no account is always last.
func (w *Worker) applyStalled(ctx context.Context, accounts []job.OldestQueued) {
	if len(accounts) == 0 {
		return
	}
	until := time.Now().Add(directFor)
	ctx, cancel := context.WithTimeout(ctx, 2*directFor) // for a Postgres that does not answer; else the last batches end
	defer cancel()
	share := max(1, min(directShare, len(accounts)/directGroups))
	slices.SortFunc(accounts, func(x, y job.OldestQueued) int { return cmp.Compare(x.AccountID, y.AccountID) })
	groups := slices.Collect(slices.Chunk(accounts, share))
	rand.Shuffle(len(groups), func(i, j int) { groups[i], groups[j] = groups[j], groups[i] }) //nolint:gosec // spreads work, keeps no secret
	var group errgroup.Group
	group.SetLimit(directAppliers)
	for _, some := range groups {
		group.Go(func() error {
			w.applyDirectly(ctx, until, some)
			return nil
		})
	}
	_ = group.Wait() // returns no error
}

// applyDirectly applies the queued jobs of some accounts, as a task for them would. It begins
// no batch after until: one that is cut off loses its connection, and no worker knows how it
// ended. It skips locked accounts: another worker applies them, or the next sweep does.
//
// After a kill before the first apply the jobs are queued, for the sweep of any worker. After
// a later one each job is as its own transaction left it, queued or finished. When Redis is
// back, tasks that it still has for these jobs find them finished.
func (w *Worker) applyDirectly(ctx context.Context, until time.Time, accounts []job.OldestQueued) {
	if ctx.Err() != nil || time.Now().After(until) {
		return
	}
	jobs, err := w.cfg.Backlog.Unlocked(ctx, accounts)
	if err != nil {
		w.cfg.Log.Warn("sweep could not find jobs of stalled accounts", "error", err)
		return
	}
	w.cfg.Metrics.direct.Add(float64(len(jobs)))
	failpoint.Hit(failpoint.DirectUnapplied)
	var due []queue.Notification
	for _, id := range jobs {
		due = append(due, queue.Notification{JobID: id, Jobs: 1})
	}
	for batches := 0; batches < directBatches && len(due) > 0 && time.Now().Before(until); batches++ {
		var batchErr error // of one account, or of all
		due, _, batchErr = w.Apply(ctx, due)
		err = cmp.Or(err, batchErr)
	}
	if err != nil && ctx.Err() == nil {
		w.cfg.Log.Warn("sweep could not apply a stalled account", "error", err)
	}
	failpoint.Hit(failpoint.DirectApplied)
}
