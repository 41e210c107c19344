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
	// directShare bounds the accounts of a group. A sweep makes at least directGroups groups, if
	// it has so many accounts.
	directShare  = 16
	directGroups = 4 * directAppliers
	// directBatches bounds the batches of a group.
	directBatches = 32
	// directFor is how long a sweep applies accounts before it reads the queue again.
	directFor = 5 * time.Second
)

// applyStalled applies stalled accounts for about directFor. The next sweep applies those that
// this one has no time for. The groups come in a random order and few at once, so that two
// workers seldom want the same account, and no account is always the last.
func (w *Worker) applyStalled(ctx context.Context, accounts []job.OldestQueued) {
	if len(accounts) == 0 {
		return
	}
	until := time.Now().Add(directFor)
	ctx, cancel := context.WithTimeout(ctx, 2*directFor) // only if Postgres hangs: the last batches end well before
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

// applyDirectly applies the queued jobs of some accounts, as a task for them would. It begins no
// batch after until: a batch that its context ends loses its connection, and the worker does not
// learn the outcome. It skips locked accounts: another worker applies them, or the next sweep
// does.
//
// After a kill before the first apply the jobs are queued, for the sweep of any worker. After a
// later kill each job is as its own transaction left it, queued or finished. When Redis is back,
// the tasks that it still has for these jobs find them finished.
func (w *Worker) applyDirectly(ctx context.Context, until time.Time, accounts []job.OldestQueued) {
	if ctx.Err() != nil || time.Now().After(until) {
		return
	}
	jobs, err := w.cfg.Backlog.Unlocked(ctx, accounts)
	if err != nil {
		w.warner.warn("find", "sweep could not find jobs of stalled accounts", "error", err)
		return
	}
	w.cfg.Metrics.applies.Add(float64(len(jobs)))
	failpoint.Hit(failpoint.DirectUnapplied)
	var due []queue.Notification
	for _, newest := range jobs {
		due = append(due, queue.Notification{JobID: newest.JobID, AccountID: newest.AccountID, Jobs: 1})
	}
	for batches := 0; batches < directBatches && len(due) > 0 && time.Now().Before(until); batches++ {
		var batchErr error
		due, _, batchErr = w.Apply(ctx, due)
		err = cmp.Or(err, batchErr)
	}
	if err != nil && ctx.Err() == nil {
		w.warner.warn("apply", "sweep could not apply a stalled account", "error", err)
	}
	failpoint.Hit(failpoint.DirectApplied)
}
