package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// sweepEvery is the pause between two sweeps. A recovery takes mostly these pauses: an account
	// without a task waits for two sweeps and a wake-up, and for three more sweeps if its
	// partition has pending tasks. A sweep that finds nothing is one probe of an index, some
	// 100 µs of Postgres, so a dozen workers need less than 1 % of a core.
	sweepEvery = 500 * time.Millisecond
	// After a sweep that took long, the pause is sweepShare times as long as the sweep, at most
	// longestSweepPause, so that sweeps of a long backlog leave Postgres time for applies. After
	// Redis has lost all tasks, an account of a long backlog waits for two of these pauses.
	sweepShare        = 4
	longestSweepPause = 1500 * time.Millisecond
	// stepTimeout bounds the reading of a page of accounts and the check of one account, so
	// that a connection which swallows everything does not stop the sweeps for ever.
	stepTimeout = 5 * time.Second
	// redisTimeout bounds each exchange with Redis.
	redisTimeout = time.Second
	// sweepers is how many accounts a sweep checks at once.
	sweepers = 16
)

// sweep finds the stalled accounts and enqueues a new task for each. An account is stalled if its oldest
// queued job is the same as a sweep ago, and its task is missing or has been in the same state
// for too long. One task for the newest job is enough, because it applies all earlier ones.
//
// The sweep applies the account itself if Redis refuses or does not answer, if no worker takes
// tasks from the partition's pending list, or if the sweep's task did not help. An error at one
// key or partition concerns only the accounts there.
func (w *Worker) sweep(ctx context.Context) {
	queued, err := w.oldestQueued(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.warner.warn("sweep", "sweep failed", "error", err)
		}
		return
	}
	w.cfg.Metrics.backlog(queued)
	w.health.recordSweep()
	found := findings{lists: w.pendingLists(ctx, queued)}
	accounts := make([]watched, len(queued))
	var group errgroup.Group
	group.SetLimit(sweepers)
	for i, oldest := range queued {
		if accounts[i] = w.accounts[oldest.AccountID]; accounts[i].oldest.JobID != oldest.JobID {
			accounts[i] = watched{
				oldest: oldest, since: time.Now(),
				task: queue.Task{AccountID: oldest.AccountID, JobID: oldest.JobID},
			}
			continue
		}
		group.Go(func() error {
			found.record(oldest, w.checkUnchanged(ctx, &accounts[i], &found))
			return nil
		})
	}
	_ = group.Wait() // each error is recorded
	if found.err != nil && ctx.Err() == nil {
		w.warner.warn("enqueue", "no task will apply some stalled accounts", "error", found.err, "direct_accounts", len(found.direct))
	}
	w.remember(queued, accounts)
	w.applyStalled(ctx, found.direct)
}

// errNoTask is returned for an account that the sweep must apply itself: Redis refuses to read
// or write its task, or its tasks do not help.
var errNoTask = errors.New("no task will apply the account")

// findings is what a sweep learns while it checks accounts.
type findings struct {
	lists    queue.PendingLists
	noAnswer atomic.Bool // Redis does not answer; this sweep calls it no more

	mu     sync.Mutex         // guards the fields below
	direct []job.OldestQueued // the oldest queued jobs of the accounts that the sweep applies itself
	err    error              // the first error
}

// record records the error of an account's check.
func (f *findings) record(oldest job.OldestQueued, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, errNoTask) {
		f.direct = append(f.direct, oldest)
	}
	f.err = cmp.Or(f.err, err)
}

// refused makes errNoTask of Redis's error. It records in noAnswer that Redis does not answer:
// each further call of the sweep would cost the same time-out.
func (f *findings) refused(err error) error {
	if !queue.IsAnswer(err) {
		f.noAnswer.Store(true)
	}
	return fmt.Errorf("%w: %w", errNoTask, err)
}

// remember keeps the accounts for the next sweep, and counts those that were enqueued again.
func (w *Worker) remember(queued []job.OldestQueued, accounts []watched) {
	enqueued := 0
	next := make(map[int64]watched, len(queued))
	for i, oldest := range queued {
		if accounts[i].unchanged > 0 && accounts[i].task != w.accounts[oldest.AccountID].task {
			enqueued++
		}
		next[oldest.AccountID] = accounts[i]
	}
	w.accounts = next
	if enqueued > 0 {
		w.cfg.Metrics.enqueues.Add(float64(enqueued))
		w.cfg.Log.Info("sweep enqueued stalled accounts again", "accounts", enqueued)
	}
}

// pendingLists polls the pending lists before this sweep writes any task. It does not call Redis
// if no account's oldest queued job is the same as a sweep ago.
func (w *Worker) pendingLists(ctx context.Context, queued []job.OldestQueued) queue.PendingLists {
	unchanged := func(oldest job.OldestQueued) bool { return w.accounts[oldest.AccountID].oldest.JobID == oldest.JobID }
	if !slices.ContainsFunc(queued, unchanged) {
		return queue.PendingLists{}
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	return w.cfg.Queue.PendingLists(ctx)
}

// checkUnchanged checks an account whose oldest queued job is the same as a sweep ago. It enqueues
// the account again if it is stalled. It returns errNoTask if the sweep must apply the account
// itself.
func (w *Worker) checkUnchanged(ctx context.Context, account *watched, found *findings) error {
	list := found.lists.Of(account.task.AccountID)
	if list.Err != nil || found.noAnswer.Load() {
		account.unchanged++
		return fmt.Errorf("%w: %w", errNoTask, cmp.Or(list.Err, queue.ErrNoAnswer))
	}
	asking, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	info, err := w.cfg.Queue.Find(asking, account.task)
	if err != nil {
		account.unchanged++
		return found.refused(err)
	}
	believed := account.observe(info, list)
	switch {
	case list.Paused: // an operator wants no job of it applied
		return nil
	case account.isUnmoved():
		return fmt.Errorf("%w: its pending list does not move", errNoTask)
	case believed:
		return nil
	case account.task.Attempt > 0:
		return fmt.Errorf("%w: the sweep's task did not help", errNoTask)
	}
	return w.enqueueAgain(ctx, account, found)
}

// enqueueAgain writes the account's next task, for its newest job.
func (w *Worker) enqueueAgain(ctx context.Context, account *watched, found *findings) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	newest, err := w.cfg.Backlog.Last(ctx, account.oldest)
	switch {
	case errors.Is(err, job.ErrNotFound): // all its jobs have finished meanwhile
		return nil
	case err != nil:
		return fmt.Errorf("enqueue stalled account: %w", err)
	}
	next := queue.Task{AccountID: account.task.AccountID, JobID: newest, Attempt: account.task.Attempt + 1}
	// After a kill before the task is written, the sweeps of other workers find the account.
	// After a kill once it is written, they find the task, and believe it while it is pending.
	failpoint.Hit(failpoint.SweepTaskUnwritten)
	asking, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := w.cfg.Queue.Enqueue(asking, next); err != nil {
		return found.refused(err)
	}
	failpoint.Hit(failpoint.SweepTaskWritten)
	account.task, account.since, account.same, account.info = next, time.Now(), 0, queue.TaskInfo{}
	return nil
}
