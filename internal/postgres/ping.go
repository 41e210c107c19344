package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// idleEnough is how long a connection is taken for a working one without being
	// asked, as pgxpool does.
	idleEnough = time.Second
	// pingTimeout is how long one that is asked has: an accept that meets a dead one
	// still has time for another.
	pingTimeout = time.Second
)

// pinger asks connections that were idle whether they still work.
//
// A network that was cut may leave connections that swallow all that they are
// sent: mostly not one, but each of the pool. So one that does not answer speaks
// for all of them, and the next are new. To ask each in turn takes a pool's worth
// of pingTimeouts, in which nobody gets through.
type pinger struct {
	pool *pgxpool.Pool

	mu   sync.Mutex // guards the rest
	left time.Time  // when all connections were left; those that there are, are newer
}

// isDead is a pgxpool.Config.ShouldPing that asks by itself: a dead connection is
// closed then, which is what the pool finds when it asks once more.
func (p *pinger) isDead(ctx context.Context, idle pgxpool.ShouldPingParams) bool {
	if idle.IdleDuration < idleEnough {
		return false
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := idle.Conn.Ping(ctx)
	if pgconn.Timeout(err) && time.Since(asked) >= pingTimeout {
		p.leaveAll(asked)
	}
	return err != nil
}

// leaveAll leaves all connections because one that was asked did not answer,
// unless they have been left since.
func (p *pinger) leaveAll(asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if asked.After(p.left) {
		p.pool.Reset()
		p.left = time.Now()
	}
}
