package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// leaveTimeout bounds each of the two steps in which pgx takes leave of a
// connection that did not answer in time: it asks the server to cancel, and then
// waits for the server to close. By itself it takes 15 s for both, and the
// connection's place in the pool is taken until then: once the network had
// swallowed as many as the pool has, nobody got through for a quarter of a
// minute after it was mended.
const leaveTimeout = time.Second

var errNothingToCancel = errors.New("nothing to cancel: the connection was never made")

// leaveSoon makes pgx keep to leaveTimeout, and ask for no cancel where the
// connection was not even made: one more that knocks, and that Postgres answers
// with "invalid length of startup packet", while it has no time for either.
//
// Nothing else that pgx does sets a deadline in the future, or dials for longer
// than connectTimeout; should that change, TestLeaveSoon fails.
func leaveSoon(dial pgconn.DialFunc, made *atomic.Bool) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		deadline, bounded := ctx.Deadline()
		cancels := bounded && time.Until(deadline) > connectTimeout
		if cancels {
			if !made.Load() {
				return nil, errNothingToCancel
			}
			brief, cancel := context.WithTimeout(ctx, leaveTimeout)
			defer cancel()
			ctx = brief
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if cancels {
			if err := conn.SetDeadline(time.Now().Add(leaveTimeout)); err != nil {
				return nil, fmt.Errorf("bound cancel request: %w", err)
			}
		}
		return briefConn{conn}, nil
	}
}

// briefConn does not wait for longer than leaveTimeout, where it is told how
// long to wait.
type briefConn struct{ net.Conn }

// SetDeadline sets the deadline, or an earlier one.
func (c briefConn) SetDeadline(deadline time.Time) error {
	if latest := time.Now().Add(leaveTimeout); deadline.After(latest) {
		deadline = latest
	}
	return c.Conn.SetDeadline(deadline)
}
