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
	// aheadLife is how long what was applied ahead of its ticket is remembered, at
	// least, and twice as long at most; then a ticket costs a round trip more.
	aheadLife = 30 * time.Second
	// maxAhead bounds how many are remembered in that time, and so the memory.
	maxAhead = 50_000
)

// isLate tells whether jobs were applied long after their accept.
func isLate(applied []ledger.Applied) bool {
	return slices.ContainsFunc(applied, func(a ledger.Applied) bool { return a.FinishedAt.Sub(a.CreatedAt) > late })
}

// ahead remembers the jobs that were applied ahead of their tickets, so that those
// end without asking Postgres. A job that is forgotten, or that somebody else has
// applied, costs its ticket a round trip. The sweep's tickets are heard all the same:
// a Postgres may come back without what it had committed, from a backup or a standby
// that had not heard of it.
type ahead struct {
	mu         sync.Mutex // guards the rest
	young, old map[uuid.UUID]struct{}
	since      time.Time // that young is
}

// add remembers those that are finished for good: a failed job may be replayed.
func (a *ahead) add(applied []ledger.Applied) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.age()
	for _, job := range applied {
		if job.Outcome != ledger.Failed {
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
