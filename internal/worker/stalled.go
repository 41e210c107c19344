package worker

import (
	"math/bits"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
)

// After how many sweeps a task in the same state is no longer believed to apply its account;
// or after so many times sweepEvery, where sweeps take longer.
const (
	// longActive is longer than a worker waits for an account's lock, and short for the task
	// of a dead worker.
	longActive = 3
	// longRetry is longer than the delay between two attempts. It counts sweeps and does not
	// read the time of the next attempt, which a worker with a wrong clock may have written an
	// hour too late.
	longRetry = int(queue.LongestRetry/sweepEvery) + 2
	// longMissing is for a task that is missing while others are pending in its partition: a
	// task of several accounts has only the name of its first job. It is short, because a
	// needless task costs a round trip and a lost task that is waited for costs seconds.
	longMissing = 4
	// longUnlisted is for a task whose state is pending while its pending list is empty.
	longUnlisted = 4
	// longUnmoved is for a pending list from which no worker takes a task: Redis is full or
	// read-only, or forbids a command. A worker that is only busy takes one sooner; where it
	// doesn't, the sweep applies the same account, which costs time.
	longUnmoved = 8
	// longPending is for a task whose state is pending but whose name is missing in a pending
	// list with other tasks; a power of two.
	longPending = 32
)

// watched is what the sweeps know of an account with queued jobs. The account is stalled
// while its oldest queued job stays the same.
type watched struct {
	oldest  job.OldestQueued // its oldest queued job
	task    queue.Task       // the task that should apply it
	stalled int              // for how many sweeps oldest has been the same
	info    queue.TaskInfo   // where the last sweep found the task
	same    int              // for how many sweeps info has been the same
	since   time.Time        // when info was found first, by this process's own clock

	oldestTask   string    // the oldest task of the partition's pending list
	unmoved      int       // for how many sweeps oldestTask has been the same
	unmovedSince time.Time // by this process's own clock
}

// observe counts one more sweep in which the account was stalled. It returns whether its task
// is still believed to apply it. list is the partition's pending list.
func (a *watched) observe(info queue.TaskInfo, list queue.PendingList) (believed bool) {
	a.stalled++
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
		return !isLongPending(a.stalled) && (list.Oldest != "" || !a.isLong(longUnlisted))
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

// isLongPending is true at longPending sweeps, and at each doubling: where the pending list
// is only long, the sweep adds ever fewer tasks.
func isLongPending(sweeps int) bool {
	return sweeps >= longPending && bits.OnesCount(uint(sweeps)) == 1
}
