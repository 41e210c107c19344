package worker

import (
	"math/bits"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
)

// After so many sweeps with a task in the same state, the sweep no longer believes that the task
// will apply its account. If sweeps take longer than sweepEvery, so many times sweepEvery count
// instead.
const (
	// longActive is for a task that a worker handles. It is longer than a worker waits for an
	// account's lock, and much shorter than the lease of a dead worker's task.
	longActive = 3
	// longRetry is for a task that waits for its next attempt, longer than the delay before one.
	// The sweep does not go by the time of that attempt: a worker with a wrong clock may have
	// written it, an hour too late.
	longRetry = int(queue.LongestRetry/sweepEvery) + 2
	// longMissing is for a task that is missing while other tasks or notifications wait in its partition.
	// One of those may be for this account: a task of several accounts has the name of its first job.
	// The wait is short: a needless task costs a round trip, waiting for a lost task costs seconds.
	longMissing = 4
	// longUnlisted is for a task whose state is pending while its pending list is empty.
	longUnlisted = 4
	// longUnmoved is for a pending list from which no worker takes a task: Redis is full or
	// read-only, or forbids a command. A worker that is only busy takes a task sooner. If it
	// doesn't, the sweep applies an account that the worker is about to apply, which costs time.
	longUnmoved = 8
	// longPending is for a task whose state is pending, but whose name may be missing from the
	// pending list. It is compared with watched.unchanged, not with same: isLongPending. It is a
	// power of two.
	longPending = 32
)

// watched is what the sweeps know of an account with queued jobs. The account may be stalled
// while its oldest queued job stays the same. It is stalled once its task is no longer believed
// to apply it.
type watched struct {
	oldest    job.OldestQueued // its oldest queued job
	unchanged int              // for how many sweeps oldest has been the same
	task      queue.Task       // the task that should apply it
	info      queue.TaskInfo   // where the last sweep found the task
	same      int              // for how many sweeps info has been the same
	since     time.Time        // when info was found first, by this process's own clock

	oldestTask   string    // the oldest task of the partition's pending list
	unmoved      int       // for how many sweeps oldestTask has been the same
	unmovedSince time.Time // by this process's own clock
}

// observe records what one more sweep found of an account whose oldest queued job is unchanged:
// its task, and the partition's pending list. It returns whether the sweep still believes that
// the task will apply the account.
func (a *watched) observe(info queue.TaskInfo, list queue.PendingList) (believed bool) {
	a.unchanged++
	a.same++
	if info != a.info {
		a.info, a.same, a.since = info, 1, time.Now()
	}
	a.unmoved++
	if list.Oldest != a.oldestTask {
		a.oldestTask, a.unmoved, a.unmovedSince = list.Oldest, 0, time.Now()
	}
	switch info.State {
	case queue.TaskPending:
		return !isLongPending(a.unchanged) && (list.Oldest != "" || !a.isLong(longUnlisted))
	case queue.TaskActive:
		return !a.isLong(longActive)
	case queue.TaskRetry:
		return !a.isLong(longRetry)
	default:
		return (list.Oldest != "" || list.Notified) && a.task.Attempt == 0 && !a.isLong(longMissing)
	}
}

// isLong is true for a task that has been in the same state for so many sweeps.
func (a *watched) isLong(sweeps int) bool {
	return a.same >= sweeps || time.Since(a.since) >= time.Duration(sweeps)*sweepEvery
}

// isUnmoved is true while the partition's pending list has had the same oldest task for
// longUnmoved sweeps: no worker can take it.
func (a *watched) isUnmoved() bool {
	return a.oldestTask != "" && a.unmoved > 0 &&
		(a.unmoved >= longUnmoved || time.Since(a.unmovedSince) >= longUnmoved*sweepEvery)
}

// isLongPending is true after longPending sweeps, and each time their number has doubled. If the
// pending list is only long, the sweep so adds fewer and fewer tasks to it.
func isLongPending(sweeps int) bool {
	return sweeps >= longPending && bits.OnesCount(uint(sweeps)) == 1
}
