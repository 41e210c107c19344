package finished

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
)

const (
	// maxWaiters bounds the jobs that are waited for at once, and maxWaitersPerUser those of one
	// user. A job counts for each request that waits for it.
	maxWaiters        = 10_000
	maxWaitersPerUser = 1_000
	// maxRead bounds the jobs of a read.
	maxRead = 1024
	// maxRecent is how many of the jobs that finished last a hub knows: those of several
	// seconds.
	maxRecent = 16_384
)

// waitingJob is a job that requests wait for.
type waitingJob struct {
	userID uuid.UUID // its owner
	to     []waiter
	isDue  bool // it is in Hub.due
}

// waiter is a request that waits for a job.
type waiter struct {
	finished chan job.Job
	after    uint64 // the number of the last read that began before it
}

// Wait returns a channel (buffer of 1) that receives the job once it is finished and its end is
// durable. The caller must have seen that the job is the user's, and queued. ok is false where
// requests wait for too many jobs already. The caller must call stop, or receive the job.
//
// A job that finishes between the caller's look and Wait is among the recent ones, or the next
// look of the hub finds it.
func (h *Hub) Wait(userID, jobID uuid.UUID) (finished <-chan job.Job, stop func(), ok bool) {
	to := make(chan job.Job, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiters == maxWaiters || h.waitersOf[userID] == maxWaitersPerUser {
		return nil, nil, false
	}
	if h.waiting[jobID] == nil {
		h.waiting[jobID] = &waitingJob{userID: userID}
	}
	if h.waiting[jobID].userID != userID {
		return nil, nil, false
	}
	h.countWaiters(userID, 1)
	h.waiting[jobID].to = append(h.waiting[jobID].to, waiter{finished: to, after: h.reads})
	if h.recent.has(jobID) {
		h.setDue(jobID)
	}
	return to, func() { h.stopWaiting(jobID, to) }, true
}

// countWaiters adds n to the counts. Its caller holds the lock.
func (h *Hub) countWaiters(userID uuid.UUID, n int) {
	h.waiters += n
	if h.waitersOf[userID] += n; h.waitersOf[userID] == 0 {
		delete(h.waitersOf, userID)
	}
}

func (h *Hub) stopWaiting(jobID uuid.UUID, to chan job.Job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	waiting := h.waiting[jobID]
	if waiting == nil {
		return
	}
	if i := slices.IndexFunc(waiting.to, func(w waiter) bool { return w.finished == to }); i >= 0 {
		waiting.to = slices.Delete(waiting.to, i, i+1)
		h.countWaiters(waiting.userID, -1)
	}
	if len(waiting.to) == 0 {
		delete(h.waiting, jobID)
	}
}

// setDue has the job read if it is waited for. Its caller holds the lock.
func (h *Hub) setDue(jobID uuid.UUID) {
	if waiting := h.waiting[jobID]; waiting != nil && !waiting.isDue {
		waiting.isDue = true
		h.due = append(h.due, jobID)
		signal(h.isDue)
	}
}

// readDue reads jobs that are due until ctx ends. What becomes due during a read is read
// together in the next one, so their number follows the load.
func (h *Hub) readDue(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.isDue:
		}
		for some := h.takeDue(); len(some) > 0; some = h.takeDue() {
			if err := h.read(ctx, some); err != nil && ctx.Err() == nil {
				h.logs.Do(func() { h.log.Warn("could not read finished jobs", "jobs", len(some), "error", err) }) // the next look tries again
			}
		}
	}
}

// takeDue takes at most maxRead due jobs that are still waited for.
func (h *Hub) takeDue() (some []job.Owned) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(len(h.due), maxRead)
	for _, id := range h.due[:n] {
		if waiting := h.waiting[id]; waiting != nil && waiting.isDue {
			waiting.isDue = false
			some = append(some, job.Owned{UserID: waiting.userID, ID: id})
		}
	}
	h.due = slices.Delete(h.due, 0, n)
	if len(h.due) > 0 {
		signal(h.isDue) // where some is empty
	}
	return some
}

// lookAtJobs reads all jobs that are waited for.
func (h *Hub) lookAtJobs(ctx context.Context) error {
	h.mu.Lock()
	all := make([]job.Owned, 0, len(h.waiting))
	for id, waiting := range h.waiting {
		all = append(all, job.Owned{UserID: waiting.userID, ID: id})
	}
	h.mu.Unlock()
	for some := range slices.Chunk(all, maxRead) {
		if err := h.read(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// read gives finished jobs to the waiters that came before it began. It may show a failure from before
// a replay, while a later waiter has already seen the job queued again. So a later waiter gets its
// job from a later read.
//
// A crash of Postgres before the read has returned undoes nothing that a waiter was given. One
// after it undoes nothing that the read has returned. A kill of the API leaves clients without
// an answer.
func (h *Hub) read(ctx context.Context, some []job.Owned) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	number := h.beginRead()
	found, err := h.jobs.Finished(ctx, some)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, finished := range found {
		waiting := h.waiting[finished.ID]
		if waiting == nil || waiting.userID != finished.UserID {
			continue
		}
		h.give(waiting, finished.Job, number)
	}
	return nil
}

// beginRead returns the number of a read that begins.
func (h *Hub) beginRead() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	return h.reads
}

// give gives the job to those of its waiters that came before the read with this number. Its
// caller holds the lock.
func (h *Hub) give(waiting *waitingJob, finished job.Job, number uint64) {
	came := len(waiting.to)
	waiting.to = slices.DeleteFunc(waiting.to, func(w waiter) bool {
		if w.after >= number {
			return false
		}
		w.finished <- finished // has a buffer, and gets one job
		return true
	})
	h.countWaiters(waiting.userID, len(waiting.to)-came)
	if len(waiting.to) == 0 {
		delete(h.waiting, finished.ID)
	}
}

// recent is the jobs that finished last.
type recent struct {
	ids   map[uuid.UUID]struct{}
	order []uuid.UUID // circular
	next  int         // the oldest
}

func newRecent() recent {
	return recent{ids: make(map[uuid.UUID]struct{}, maxRecent), order: make([]uuid.UUID, maxRecent)}
}

func (r *recent) add(id uuid.UUID) {
	if r.has(id) {
		return
	}
	delete(r.ids, r.order[r.next])
	r.ids[id] = struct{}{}
	r.order[r.next] = id
	r.next = (r.next + 1) % maxRecent
}

func (r *recent) has(id uuid.UUID) bool {
	_, has := r.ids[id]
	return has
}
