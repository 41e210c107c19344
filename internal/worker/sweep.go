package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
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
	// sweepEvery is the pause between two sweeps. An account that stands still
	// from one to the next is looked after; those that nothing rings for wait for
	// two of them and a bell, and for at most three pauses more where their
	// partition has a line: that is most of how long a recovery takes. A sweep
	// that finds nothing is one probe of an index, some 100 µs of Postgres's, so
	// even a dozen workers cost it less than 1 % of a core.
	sweepEvery = 500 * time.Millisecond
	// sweepShare makes a sweep that takes its time, because there is a long
	// backlog, take no more than a fifth of it: the pause is so many times as
	// long, up to longestSweepPause. Two of those pauses are what an account of a
	// long backlog waits for when Redis has lost everything.
	sweepShare        = 4
	longestSweepPause = 1500 * time.Millisecond
	// stepTimeout bounds the reading of a page of accounts and the looking after
	// one: a connection that swallows everything must not end the sweeps.
	stepTimeout = 5 * time.Second
	// redisTimeout bounds each question to Redis.
	redisTimeout = time.Second
	// directAppliers is how many groups of accounts a sweep applies at once where
	// Redis refuses: a quarter of the worker's connections. directShare is how many
	// accounts share a group at most, and directGroups how many groups few accounts make
	// at least. directTurns is how often a group has a turn's jobs applied, and directFor
	// how long a sweep applies before it looks again.
	directAppliers = 4
	directShare    = 16
	directGroups   = 4 * directAppliers
	directTurns    = 32
	directFor      = 5 * time.Second
	// sweepers is how many accounts a sweep looks after at once.
	sweepers = 16
)

// After how many sweeps a ticket is no longer believed to bring its account on;
// or after as many of sweepEvery, where sweeps take longer.
const (
	// longInHand passes over a worker that waits for the account's lock, and is
	// soon enough for one that is dead.
	longInHand = 3
	// longPutOff passes over the pause between two tries. It counts sweeps and
	// does not read the time of the next try, which a worker with a wrong clock
	// wrote an hour too late.
	longPutOff = int(queue.LongestRetry/sweepEvery) + 2
	// longUnseen is for a ticket that is not there by its account's name, while
	// others wait in the partition's line: one that several accounts share has the
	// name of the first one's job alone. Short enough for a ticket that is lost;
	// where sweeps are so far apart that it is over at the first look, a ticket too
	// many costs a round trip, and a lost one that is waited for costs seconds.
	longUnseen = 4
	// longUnlisted is for a task that says it is pending while its list is empty.
	longUnlisted = 4
	// longUnmoved is for a pending list from which no worker takes a task: Redis is
	// full, or read-only, or refuses them a command. A worker that is only busy takes
	// one sooner; where it doesn't, the sweep's apply of the same account costs time.
	longUnmoved = 8
	// longInLine is for a line that Redis has lost; a power of two.
	longInLine = 32
)

// suspect is an account with queued jobs: the oldest of them, the ticket that
// should bring it on, and for how many sweeps it has not.
type suspect struct {
	head   job.Head
	ticket queue.Task
	still  int
	place  queue.TaskInfo // of the ticket
	same   int         // for how many sweeps it has been there
	since  time.Time   // which it has been for at least, by this process's own clock

	oldest       string    // the partition's oldest pending task
	unmoved      int       // for how many sweeps it has been that
	unmovedSince time.Time // by this process's own clock
}

// sweep brings on the accounts that no task is going to bring on: those whose
// oldest queued job is the same as a sweep ago, while the task that should
// have brought it on is gone, or has been where it is for too long. One task
// an account is enough, for its newest job: it applies all before it. An account
// that moves is left alone, and so is one whose task waits in its pending list or
// for another try. Where Redis refuses the sweep applies the account itself; an
// error at one key or partition concerns the accounts there, and no other.
func (w *Worker) sweep(ctx context.Context) {
	heads, err := w.heads(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.cfg.Log.Warn("sweep put off", "error", err)
		}
		return
	}
	w.cfg.Metrics.backlog(heads)
	found := findings{lists: w.lines(ctx, heads)}
	suspects := make([]suspect, len(heads))
	var group errgroup.Group
	group.SetLimit(sweepers)
	for i, head := range heads {
		if suspects[i] = w.suspects[head.AccountID]; suspects[i].head.JobID != head.JobID {
			suspects[i] = suspect{
				head: head, since: time.Now(),
				ticket: queue.Task{AccountID: head.AccountID, JobID: head.JobID},
			}
			continue
		}
		group.Go(func() error {
			found.note(head, w.lookAfter(ctx, &suspects[i], &found))
			return nil
		})
	}
	_ = group.Wait() // each error is noted
	if found.err != nil && ctx.Err() == nil {
		w.cfg.Log.Warn("sweep met errors", "first", found.err, "stalled", len(found.refused))
	}
	w.remember(heads, suspects)
	w.applyStalled(ctx, found.refused)
}

// errRefused is returned for an account that the sweep has to apply itself: Redis
// does not read or write its task, or its tasks don't help.
var errRefused = errors.New("no task brings the account on")

// findings is what a sweep learns while it looks after accounts.
type findings struct {
	lists queue.PendingLists
	away  atomic.Bool // Redis doesn't answer: the rest of the sweep does not ask it

	mu      sync.Mutex // guards the rest
	refused []job.Head // of the accounts that the sweep applies itself
	err     error      // the first
}

// note notes the error of looking after an account.
func (f *findings) note(head job.Head, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, errRefused) {
		f.refused = append(f.refused, head)
	}
	f.err = cmp.Or(f.err, err)
}

// refuse makes of an error of Redis's one that has the account applied. A Redis
// that hangs would cost every other account the same time-out.
func (f *findings) refuse(err error) error {
	if !queue.IsAnswer(err) {
		f.away.Store(true)
	}
	return fmt.Errorf("%w: %w", errRefused, err)
}

// remember keeps what this sweep found for the next one, and tells how often it
// rang.
func (w *Worker) remember(heads []job.Head, suspects []suspect) {
	rung := 0
	next := make(map[int64]suspect, len(heads))
	for i, head := range heads {
		if suspects[i].still > 0 && suspects[i].ticket != w.suspects[head.AccountID].ticket {
			rung++
		}
		next[head.AccountID] = suspects[i]
	}
	w.suspects = next
	if rung > 0 {
		w.cfg.Metrics.swept.Add(float64(rung))
		w.cfg.Log.Info("sweep rang for accounts that stood still", "accounts", rung)
	}
}

// lines looks at the partitions' pending lists, as they are before this sweep
// writes any task; where no account stands still, it does not ask.
func (w *Worker) lines(ctx context.Context, heads []job.Head) queue.PendingLists {
	still := func(head job.Head) bool { return w.suspects[head.AccountID].head.JobID == head.JobID }
	if !slices.ContainsFunc(heads, still) {
		return queue.PendingLists{}
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	return w.cfg.Tickets.PendingLists(ctx)
}

// lookAfter writes the next task of a stalled account, unless its last one is
// still believed. It returns errRefused for one that the sweep must apply itself.
func (w *Worker) lookAfter(ctx context.Context, known *suspect, found *findings) error {
	list := found.lists.Of(known.ticket.AccountID)
	if list.Err != nil || found.away.Load() {
		known.still++
		return fmt.Errorf("%w: %w", errRefused, cmp.Or(list.Err, queue.ErrNoAnswer))
	}
	asking, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	place, err := w.cfg.Tickets.Find(asking, known.ticket)
	if err != nil {
		known.still++
		return found.refuse(err)
	}
	believed := known.stand(place, list)
	switch {
	case list.Paused: // by an operator, who wants nothing applied
		return nil
	case known.isUnmoved():
		return fmt.Errorf("%w: its pending list does not move", errRefused)
	case believed:
		return nil
	case known.ticket.Attempt > 0:
		return fmt.Errorf("%w: its own task did not help", errRefused)
	}
	return w.enqueueAgain(ctx, known, found)
}

// enqueueAgain writes the account's next task, for its newest job.
func (w *Worker) enqueueAgain(ctx context.Context, known *suspect, found *findings) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	last, err := w.cfg.Backlog.Last(ctx, known.head)
	switch {
	case errors.Is(err, job.ErrNotFound): // it moved after all
		return nil
	case err != nil:
		return fmt.Errorf("look after account: %w", err)
	}
	next := queue.Task{AccountID: known.ticket.AccountID, JobID: last, Attempt: known.ticket.Attempt + 1}
	// A kill before the ticket is written leaves the account to the sweeps of
	// others. One after it leaves it to the ticket; they leave one in line alone.
	failpoint.Hit(failpoint.SweepTaskUnwritten)
	asking, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := w.cfg.Tickets.Enqueue(asking, next); err != nil {
		return found.refuse(err)
	}
	failpoint.Hit(failpoint.SweepTaskWritten)
	known.ticket, known.since, known.same, known.place = next, time.Now(), 0, queue.TaskInfo{}
	return nil
}

// applyStalled applies the accounts that no task brings on, for directFor at most;
// those that are not reached wait for the next sweep. Each sweep of each worker takes
// its groups in another order, and few at once, so that workers seldom meet, and no
// account is always last.
func (w *Worker) applyStalled(ctx context.Context, accounts []job.Head) {
	if len(accounts) == 0 {
		return
	}
	until := time.Now().Add(directFor)
	ctx, cancel := context.WithTimeout(ctx, 2*directFor) // of a Postgres that doesn't answer; else the last turns end
	defer cancel()
	share := max(1, min(directShare, len(accounts)/directGroups))
	slices.SortFunc(accounts, func(x, y job.Head) int { return cmp.Compare(x.AccountID, y.AccountID) })
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
	_ = group.Wait() // they return none
}

// applyDirectly applies the queued jobs of some accounts, as a task for them would, and
// begins no turn after a time: one that is cut off loses its connection, and no worker
// knows how it ended. It passes over accounts that are locked: another worker applies
// them, or the next sweep does.
//
// A kill before the first apply leaves the jobs queued, for the sweep of any worker.
// A kill between applies leaves each job as its own transaction left it, queued or
// finished; a kill after the last changes nothing. Tasks for these jobs that Redis
// still has find them finished when it is back, and apply nothing.
func (w *Worker) applyDirectly(ctx context.Context, until time.Time, accounts []job.Head) {
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
	for turns := 0; turns < directTurns && len(due) > 0 && time.Now().Before(until); turns++ {
		var turnErr error // one account's, or it ends them all
		due, _, turnErr = w.Apply(ctx, due)
		err = cmp.Or(err, turnErr)
	}
	if err != nil && ctx.Err() == nil {
		w.cfg.Log.Warn("sweep could not apply a stalled account", "error", err)
	}
	failpoint.Hit(failpoint.DirectApplied)
}

// stand counts one more sweep in which the account stood still, and tells
// whether its task, in that place, is still believed to bring it on. list is the
// partition's pending list.
func (s *suspect) stand(place queue.TaskInfo, list queue.PendingList) (believed bool) {
	s.still++
	s.same++
	if place != s.place {
		s.place, s.same, s.since = place, 1, time.Now()
	}
	s.unmoved++
	if list.Oldest != s.oldest {
		s.oldest, s.unmoved, s.unmovedSince = list.Oldest, 0, time.Now()
	}
	switch place.State {
	case queue.TaskPending:
		return !isLongInLine(s.still) && (list.Oldest != "" || !s.isLong(longUnlisted))
	case queue.TaskActive:
		return !s.isLong(longInHand)
	case queue.TaskRetry:
		return !s.isLong(longPutOff)
	default:
		return (list.Oldest != "" || list.Notified) && s.ticket.Attempt == 0 && !s.isLong(longUnseen)
	}
}

// isUnmoved is true while the partition's pending list has had the same oldest task
// for longUnmoved sweeps: no worker can take it.
func (s *suspect) isUnmoved() bool {
	return s.oldest != "" && s.unmoved > 0 &&
		(s.unmoved >= longUnmoved || time.Since(s.unmovedSince) >= longUnmoved*sweepEvery)
}

// isLong is true for a ticket that has been in its place for so many sweeps.
func (s *suspect) isLong(sweeps int) bool {
	return s.same >= sweeps || time.Since(s.since) >= time.Duration(sweeps)*sweepEvery
}

// isLongInLine is true at longInLine sweeps, and at each doubling: should the
// line be only long, then ever fewer tickets join it.
func isLongInLine(still int) bool {
	return still >= longInLine && bits.OnesCount(uint(still)) == 1
}
