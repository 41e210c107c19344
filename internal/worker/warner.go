package worker

import (
	"log/slog"
	"sync"
	"time"
)

// warnEvery is the shortest time between two warnings of the same kind.
const warnEvery = time.Minute

// warner logs the warnings of loops, which would otherwise repeat them at each pass.
type warner struct {
	log *slog.Logger

	mu   sync.Mutex           // guards last
	last map[string]time.Time // the last warning of each kind
}

func newWarner(log *slog.Logger) *warner {
	return &warner{log: log, last: map[string]time.Time{}}
}

// warn writes a warning, unless it has written one of the same kind within warnEvery. The kinds are
// a few constants.
func (w *warner) warn(kind, message string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last, warned := w.last[kind]; warned && time.Since(last) < warnEvery {
		return
	}
	w.last[kind] = time.Now()
	w.log.Warn(message, args...)
}
