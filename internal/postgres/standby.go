package postgres

import (
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// standbyLogPause is how often a server that takes no writes is told of: each write that
// it refuses ends a connection.
const standbyLogPause = time.Minute

// standbyLeaver closes a connection that turns out to lead to a server which takes
// no writes any more: the next one finds the server that does, where the URL
// names both. Kept, it would fail every write for as long as it lives.
type standbyLeaver struct {
	next pgconn.PgErrorHandler
	log  *slog.Logger // may be nil

	mu     sync.Mutex // guards logged
	logged time.Time
}

// handle is a pgconn.PgErrorHandler.
func (l *standbyLeaver) handle(conn *pgconn.PgConn, err *pgconn.PgError) (keep bool) {
	if err.Code != readOnly {
		return l.next(conn, err)
	}
	if l.log != nil && l.isTimeToLog() {
		l.log.Warn("Postgres takes no writes: leaving it, and asking each host of the URL for one that does", "error", err)
	}
	return false
}

func (l *standbyLeaver) isTimeToLog() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.logged) < standbyLogPause {
		return false
	}
	l.logged = now
	return true
}
