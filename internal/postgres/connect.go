package postgres

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// maxConnecting bounds how many connections a pool makes at a time.
//
// After a crash, or a cut network, every place in every pool wants a new one at
// once. Postgres takes connections in the order in which they knocked, and forks
// before it looks: once the line is longer than connectTimeout, all that it takes
// have been given up, and those who gave up knock again. A busy machine did
// nothing else for 46 s. A line that stays short is worked off.
const maxConnecting = 4

// turnstile lets maxConnecting connections be made at a time. Who waits for a
// turn has not begun: connectTimeout starts afterwards.
type turnstile chan struct{}

var _ pgx.ConnectTracer = turnstile(nil)

// attempt is one connection, while it is made and after.
type attempt struct {
	turn bool        // it holds one
	made atomic.Bool // Postgres has let it in
}

type attemptKey struct{}

// TraceConnectStart waits for a turn, or for the end of ctx, which ends the
// attempt too.
func (t turnstile) TraceConnectStart(ctx context.Context, data pgx.TraceConnectStartData) context.Context {
	a := &attempt{}
	data.ConnConfig.DialFunc = leaveSoon(data.ConnConfig.DialFunc, &a.made)
	select {
	case t <- struct{}{}:
		a.turn = true
	case <-ctx.Done():
	}
	return context.WithValue(ctx, attemptKey{}, a)
}

// TraceConnectEnd gives the turn back.
func (t turnstile) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	a.made.Store(data.Err == nil)
	if a.turn {
		<-t
	}
}

// TraceQueryStart is there because pgx takes no tracer without it.
func (turnstile) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd is there for the same reason.
func (turnstile) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
