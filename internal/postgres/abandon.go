package postgres

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// abandonTimeout bounds each of the two steps in which pgx abandons a connection that did
// not answer in time: pgx sends a cancel request, then waits for the server to close the
// connection. pgx itself allows 15 s for both, and the connection keeps its slot in the pool
// meanwhile. So after a network cut that hit every connection of a pool, the pool served no
// request for 15 s (https://github.com/jackc/pgx/issues/948).
//
// pgx v5.13 has no setting for these 15 s: they are a constant in asyncClose of
// pgconn/pgconn.go. BuildContextWatcherHandler only decides how a context ends a read, before
// asyncClose runs. AfterNetConnect could wrap the connection, but not the one of the cancel
// request, and SCRAM's channel binding works only on an unwrapped *tls.Conn. So both bounds
// are set where pgx dials.
const abandonTimeout = time.Second

// boundAbandon makes pgx keep to abandonTimeout. TestAbandonSoon fails where a new pgx does
// not go this way any more.
func boundAbandon(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !isAttempt(ctx) {
			return dialCancel(ctx, dial, network, addr)
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return boundedConn{conn}, nil
	}
}

// dialCancel opens the connection of a cancel request, the only other thing that pgx dials
// for.
func dialCancel(ctx context.Context, dial pgconn.DialFunc, network, addr string) (net.Conn, error) {
	latest := time.Now().Add(abandonTimeout)
	ctx, cancel := context.WithDeadline(ctx, latest)
	defer cancel()
	conn, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(latest); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("bound cancel request: %w", err)
	}
	return conn, nil
}

// boundedConn sets no deadline later than abandonTimeout from now. pgx sets a deadline in
// the future only when it abandons the connection.
type boundedConn struct{ net.Conn }

// SetDeadline sets the deadline, or the latest that is allowed.
func (c boundedConn) SetDeadline(deadline time.Time) error {
	if latest := time.Now().Add(abandonTimeout); deadline.After(latest) {
		deadline = latest
	}
	return c.Conn.SetDeadline(deadline)
}
