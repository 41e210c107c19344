package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// maxConnecting bounds how many connections a pool makes at a time.
	maxConnecting = 4
	// restAfterFailure is how long it makes none after one that came to nothing.
	restAfterFailure = 500 * time.Millisecond
)

// errResting is what an attempt comes to that was not made.
var errResting = errors.New("no new connection yet")

// turnstile keeps a pool from storming a server in trouble.
//
// After a crash, or a cut network, every place in every pool wants a new
// connection at once, and again as soon as that fails. Postgres takes connections
// in the order in which they knocked, and forks before it looks: once the line is
// longer than connectTimeout, all that it takes have been given up, and those who
// gave up knock again. On a busy machine that went on for 46 s after the network
// was mended. A line that stays short is worked off.
//
// Who waits for a turn has not begun: connectTimeout starts afterwards.
type turnstile struct {
	turns chan struct{}

	mu     sync.Mutex // guards the rest
	failed time.Time  // when an attempt last came to nothing
	why    error
}

var _ pgx.ConnectTracer = (*turnstile)(nil)

func newTurnstile() *turnstile {
	return &turnstile{turns: make(chan struct{}, maxConnecting)}
}

// attempt is one connection, while it is made and after.
type attempt struct {
	turn bool        // it holds one
	made atomic.Bool // Postgres has let it in
}

type attemptKey struct{}

// TraceConnectStart waits for a turn, or for the end of ctx, which ends the
// attempt too. Where it is no time to try, the attempt fails at once.
func (t *turnstile) TraceConnectStart(ctx context.Context, data pgx.TraceConnectStartData) context.Context {
	a := &attempt{}
	select {
	case t.turns <- struct{}{}:
		a.turn = true
	case <-ctx.Done():
	}
	data.ConnConfig.DialFunc = leaveSoon(data.ConnConfig.DialFunc, &a.made)
	if err := t.resting(); err != nil {
		data.ConnConfig.LookupFunc = func(context.Context, string) ([]string, error) { return nil, err }
		data.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, err } // of a socket
	}
	return context.WithValue(ctx, attemptKey{}, a)
}

func (t *turnstile) resting() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.failed) >= restAfterFailure {
		return nil
	}
	return fmt.Errorf("%w, after: %w", errResting, t.why)
}

// lookupSoon bounds how long a name server may keep a turn, as connectTimeout does
// the rest.
func lookupSoon(lookup pgconn.LookupFunc) pgconn.LookupFunc {
	return func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		return lookup(ctx, host)
	}
}

// TraceConnectEnd gives the turn back.
func (t *turnstile) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	a.made.Store(data.Err == nil)
	if data.Err != nil && !errors.Is(data.Err, errResting) {
		t.mu.Lock()
		t.failed, t.why = time.Now(), data.Err
		t.mu.Unlock()
	}
	if a.turn {
		<-t.turns
	}
}

// TraceQueryStart is there because pgx takes no tracer without it.
func (*turnstile) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd is there for the same reason.
func (*turnstile) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
