package worker

import (
	"log/slog"
	"sync"
	"time"
)

// seldomEvery is the shortest time between two lines about the same trouble of a loop.
const seldomEvery = time.Minute

// seldom logs what a loop meets again at each turn.
type seldom struct {
	log *slog.Logger

	mu   sync.Mutex // guards last
	last map[string]time.Time
}

func newSeldom(log *slog.Logger) *seldom {
	return &seldom{log: log, last: map[string]time.Time{}}
}

// warn writes a warning, unless it has written one about the same trouble within seldomEvery.
// Troubles are a few constants.
func (s *seldom) warn(trouble, message string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, warned := s.last[trouble]; warned && time.Since(last) < seldomEvery {
		return
	}
	s.last[trouble] = time.Now()
	s.log.Warn(message, args...)
}
