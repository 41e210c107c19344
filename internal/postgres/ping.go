package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// pingAfterIdle is how long a connection may be idle before it is pinged, as in pgxpool.
	pingAfterIdle = time.Second
	// pingTimeout bounds a ping: after a dead connection an accept still has time for another.
	pingTimeout = time.Second
)

// pinger checks whether idle connections still work.
//
// After a network cut a connection may swallow everything that it is sent, and usually every
// connection of the pool does. So when one ping times out, pinger abandons all connections,
// and the pool opens new ones. If it pinged them one after another, each would take a
// pingTimeout, and requests would fail meanwhile.
type pinger struct {
	pool *pgxpool.Pool

	mu          sync.Mutex // guards abandonedAt
	abandonedAt time.Time  // when all connections were last abandoned
}

// isDead is a pgxpool.Config.ShouldPing. It pings the connection itself; a failed ping closes
// it, so the pool's own ping, for which isDead returns true, fails at once.
func (p *pinger) isDead(ctx context.Context, idle pgxpool.ShouldPingParams) bool {
	if idle.IdleDuration < pingAfterIdle {
		return false
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := idle.Conn.Ping(ctx)
	if pgconn.Timeout(err) && time.Since(began) >= pingTimeout {
		p.abandonAll(began)
	}
	return err != nil
}

// abandonAll abandons all connections because a ping that began at pinged timed out. It does
// nothing if they have been abandoned since.
func (p *pinger) abandonAll(pinged time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pinged.After(p.abandonedAt) {
		p.pool.Reset()
		p.abandonedAt = time.Now()
	}
}
