package auth

import (
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// liveFor is how long a session seen alive counts as alive, and so how long
	// a revocation by another process may go unnoticed.
	liveFor = 5 * time.Second

	// maxLive bounds the sessions remembered, some 250 bytes each.
	maxLive = 50_000
)

// liveSessions remembers which sessions Postgres has lately called alive, so
// that a busy session costs one read every liveFor instead of one a request.
type liveSessions struct {
	mu    sync.Mutex
	seen  *simplelru.LRU[uuid.UUID, sighting] // guarded by mu
	drops uint64                              // guarded by mu; how often a session was dropped
}

// sighting is when a session was seen alive, by two clocks.
type sighting struct {
	here  time.Time // ours
	there time.Time // Postgres's
}

func newLiveSessions() *liveSessions {
	seen, _ := simplelru.NewLRU[uuid.UUID, sighting](maxLive, nil) // refuses only a size below 1
	return &liveSessions{seen: seen}
}

// has tells whether the session is known to be alive at a time of our clock,
// what Postgres's shows then, and how many drops there have been, for keep.
func (l *liveSessions) has(sessionID uuid.UUID, here time.Time) (there time.Time, alive bool, drops uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, _ := l.seen.Get(sessionID) // one that is not known was seen long ago
	passed := here.Sub(last.here)
	return last.there.Add(passed), passed < liveFor, l.drops
}

// keep remembers a session that was read as alive after has counted drops. If a session
// was dropped since, what was read may be older than that revocation: keep then remembers
// nothing, and the next request reads the session again.
func (l *liveSessions) keep(sessionID uuid.UUID, last sighting, drops uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drops == drops {
		l.seen.Add(sessionID, last)
	}
}

// drop forgets a session. Its caller has committed the revocation: keep ignores what was
// read before it, and a later read sees it.
func (l *liveSessions) drop(sessionID uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drops++
	l.seen.Remove(sessionID)
}
