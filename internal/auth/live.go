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

	// maxLive bounds the sessions remembered: some 150 bytes each.
	maxLive = 50_000
)

// liveSessions remembers which sessions Postgres has lately called alive, so
// that a busy session costs one read every liveFor instead of one a request.
type liveSessions struct {
	mu    sync.Mutex
	seen  map[uuid.UUID]sighting // guarded by mu
	drops uint64                 // guarded by mu; how often something was dropped
}

// sighting is when a session was seen alive, by two clocks.
type sighting struct {
	here  time.Time // ours
	there time.Time // Postgres's
}

func newLiveSessions() *liveSessions {
	return &liveSessions{seen: make(map[uuid.UUID]sighting)}
}

// has tells whether the session is known to be alive at a time of our clock,
// what Postgres's shows then, and how many drops there have been, for keep.
func (l *liveSessions) has(sessionID uuid.UUID, here time.Time) (there time.Time, alive bool, drops uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.seen[sessionID]
	passed := here.Sub(last.here)
	return last.there.Add(passed), passed < liveFor, l.drops
}

// keep remembers a session that was read as alive after has counted drops. If
// anything was dropped since, the answer may be older than that revocation: it
// is then forgotten, and the next request asks again.
func (l *liveSessions) keep(sessionID uuid.UUID, last sighting, drops uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drops != drops {
		return
	}
	if len(l.seen) >= maxLive { // forgetting costs a read each, and is simpler than choosing
		clear(l.seen)
	}
	l.seen[sessionID] = last
}

// drop forgets a session. Call it after the revocation has been committed:
// whoever reads earlier is stopped by keep, whoever reads later sees it.
func (l *liveSessions) drop(sessionID uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drops++
	delete(l.seen, sessionID)
}
