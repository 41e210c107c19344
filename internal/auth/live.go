package auth

import (
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	// liveFor is how long a session seen alive counts as alive, and so how long
	// a revocation by another process may go unnoticed.
	liveFor = 5 * time.Second

	// maxLive bounds the sessions remembered: some 100 bytes each.
	maxLive = 50_000
)

// liveSessions remembers which sessions Postgres has lately called alive, so
// that a busy session costs one read every liveFor instead of one a request.
type liveSessions struct {
	mu    sync.Mutex
	until map[uuid.UUID]time.Time // guarded by mu; when each must be asked about again
	drops uint64                  // guarded by mu; how often something was dropped
}

func newLiveSessions() *liveSessions {
	return &liveSessions{until: make(map[uuid.UUID]time.Time)}
}

// has tells whether the session is known to be alive, and how many drops there
// have been, for keep.
func (l *liveSessions) has(sessionID uuid.UUID, now time.Time) (alive bool, drops uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.until[sessionID]), l.drops
}

// keep remembers a session that was read as alive after has counted drops. If
// anything was dropped since, the answer may be older than that revocation: it
// is then forgotten, and the next request asks again.
func (l *liveSessions) keep(sessionID uuid.UUID, until time.Time, drops uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drops != drops {
		return
	}
	if len(l.until) >= maxLive { // forgetting costs a read each, and is simpler than choosing
		clear(l.until)
	}
	l.until[sessionID] = until
}

// drop forgets a session. Call it after the revocation has been committed:
// whoever reads earlier is stopped by keep, whoever reads later sees it.
func (l *liveSessions) drop(sessionID uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drops++
	delete(l.until, sessionID)
}
