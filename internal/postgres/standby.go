package postgres

import (
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// standbyLogPause is the shortest time between two log entries about a server that takes no
// writes: each write that it refuses ends a connection.
const standbyLogPause = time.Minute

// standbyHandler closes a connection whose server takes no writes any more. Where the URL
// names several servers, the next connection goes to the one that does. A connection that
// stayed open would fail every write.
type standbyHandler struct {
	next pgconn.PgErrorHandler
	log  *slog.Logger // may be nil

	mu     sync.Mutex // guards logged
	logged time.Time
}

// handle is a pgconn.PgErrorHandler.
func (h *standbyHandler) handle(conn *pgconn.PgConn, err *pgconn.PgError) (keep bool) {
	if err.Code != readOnly {
		return h.next(conn, err)
	}
	if h.log != nil && h.isTimeToLog() {
		h.log.Warn("Postgres takes no writes; closing the connection and trying each host of the URL", "error", err)
	}
	return false
}

func (h *standbyHandler) isTimeToLog() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if now.Sub(h.logged) < standbyLogPause {
		return false
	}
	h.logged = now
	return true
}
