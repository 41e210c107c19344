package worker

import (
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
)

const (
	// late is how long after its accept a job is applied by a partition that has
	// fallen behind.
	late = 10 * time.Millisecond
	// settled is how long after its accept a job is applied whose elders are all there
	// to be applied before it. An elder may be committed after it; then both may share
	// the younger one's ticket, which must be heard. One whose commit takes longer the
	// sweep finds.
	settled = 100 * time.Millisecond
	// aheadLife is how long what was applied ahead of its ticket is remembered, at
	// least, and twice as long at most; then a ticket costs a round trip more.
	aheadLife = 30 * time.Second
	// maxAhead bounds how many are remembered in that time, and so the memory.
	maxAhead = 50_000
)

// isLate tells whether jobs were applied long after their accept.
func isLate(applied []ledger.Applied) bool {
	return slices.ContainsFunc(applied, func(a ledger.Applied) bool { return wait(a) > late })
}

func wait(a ledger.Applied) time.Duration { return a.FinishedAt.Sub(a.CreatedAt) }

// ahead remembers the jobs that were applied ahead of their tickets, so that those
// end without asking Postgres. A job that is forgotten, or that somebody else has
// applied, costs its ticket a round trip. A Postgres may come back without what it
// has committed, from a backup or a standby that had not heard of it: the sweep sees
// that, and all is forgotten.
type ahead struct {
	mu         sync.Mutex // guards the rest
	young, old map[uuid.UUID]struct{}
	since      time.Time // that young is
}

// add remembers those that are settled, and finished for good: a failed job may be
// replayed.
func (a *ahead) add(applied []ledger.Applied) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.age()
	for _, job := range applied {
		if job.Outcome != ledger.Failed && wait(job) > settled {
			a.young[job.JobID] = struct{}{}
		}
	}
}

// without is the jobs that are not known to be applied.
func (a *ahead) without(jobs []uuid.UUID) []uuid.UUID {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.age()
	return slices.DeleteFunc(slices.Clone(jobs), a.has)
}

// forget forgets everything if one of the jobs is among it, which are queued.
func (a *ahead) forget(queued ...uuid.UUID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.ContainsFunc(queued, a.has) {
		a.young, a.old = map[uuid.UUID]struct{}{}, nil
	}
}

func (a *ahead) has(id uuid.UUID) bool {
	_, young := a.young[id]
	_, old := a.old[id]
	return young || old
}

// age forgets what is older than two lives.
func (a *ahead) age() {
	switch life := time.Since(a.since); {
	case life > 2*aheadLife:
		a.young, a.old = map[uuid.UUID]struct{}{}, nil
	case life > aheadLife || len(a.young) >= maxAhead:
		a.young, a.old = map[uuid.UUID]struct{}{}, a.young
	default:
		return
	}
	a.since = time.Now()
}
