package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"
)

const (
	// maxConnecting bounds how many connections a pool opens at once.
	maxConnecting = 4
	// pauseAfterFailure is how long a pool opens no connection after one failed.
	pauseAfterFailure = 500 * time.Millisecond
)

// errPausing is returned instead of an attempt during pauseAfterFailure.
var errPausing = errors.New("no new connection yet")

// connectLimiter bounds how many connections a pool opens at once.
//
// After a crash of Postgres or a network cut, every slot of every pool needs a new
// connection at once, and again as soon as an attempt fails. Postgres takes connections in
// the order in which they arrive, and forks a process for each. When its backlog takes longer
// than connectTimeout, Postgres only serves connections that their clients have given up, and
// those clients connect again. On a busy machine this lasted for 46 s after the network was
// back. Fewer attempts keep the backlog short.
//
// connectTimeout begins after the wait for a slot.
type connectLimiter struct {
	slots  *semaphore.Weighted
	note   func(error)  // Config's
	tracer trace.Tracer // Config's

	mu       sync.Mutex // guards the fields below
	failedAt time.Time  // of the last failed attempt
	failure  error
}

func newConnectLimiter() *connectLimiter {
	return &connectLimiter{slots: semaphore.NewWeighted(maxConnecting), note: func(error) {}}
}

// begin is a pgxpool.Config.BeforeConnect. It waits for a slot, and returns errPausing soon
// after a failure. The pool has no hook for the end of an attempt that failed, so pgx's
// tracer releases the slot.
func (l *connectLimiter) begin(ctx context.Context, cfg *pgx.ConnConfig) error {
	if err := l.slots.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait to connect: %w", err)
	}
	if err := l.pausing(); err != nil {
		l.slots.Release(1)
		return err
	}
	cfg.Tracer = attemptTracer{l}
	cfg.DialFunc = boundAbandon(cfg.DialFunc)
	return nil
}

func (l *connectLimiter) pausing() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.failedAt) >= pauseAfterFailure {
		return nil
	}
	return fmt.Errorf("%w, after: %w", errPausing, l.failure)
}

func (l *connectLimiter) end(failure error) {
	if !errors.Is(failure, context.Canceled) {
		l.note(failure)
	}
	if failure != nil {
		l.mu.Lock()
		l.failedAt, l.failure = time.Now(), failure
		l.mu.Unlock()
	}
	l.slots.Release(1)
}

// attemptTracer marks the context of an attempt to connect, and reports its end to the
// limiter.
type attemptTracer struct{ limiter *connectLimiter }

var _ pgx.ConnectTracer = attemptTracer{}

type attemptKey struct{}

// TraceConnectStart marks the context, and keeps the configuration that the connection will have.
func (attemptTracer) TraceConnectStart(ctx context.Context, data pgx.TraceConnectStartData) context.Context {
	keepConfig(data.ConnConfig)
	return context.WithValue(ctx, attemptKey{}, true)
}

// isAttempt reports whether pgx dials with this context for an attempt to connect.
func isAttempt(ctx context.Context) bool { return ctx.Value(attemptKey{}) != nil }

// TraceConnectEnd releases the slot.
func (t attemptTracer) TraceConnectEnd(_ context.Context, data pgx.TraceConnectEndData) {
	t.limiter.end(data.Err)
}

// TraceQueryStart begins the span of a query whose caller is traced.
func (t attemptTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return beginQuery(ctx, t.limiter.tracer, data.SQL)
}

// TraceQueryEnd passes on whether Postgres serves. It leaves out queries that the caller has ended.
func (t attemptTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if t.limiter.tracer != nil {
		endQuery(ctx, data.Err)
	}
	switch {
	case !IsDown(data.Err):
		t.limiter.note(nil)
	case ctx.Err() == nil && !pgconn.Timeout(data.Err):
		t.limiter.note(data.Err)
	}
}

// boundLookup bounds how long a name server may hold a slot; connectTimeout bounds only
// what follows the lookup.
func boundLookup(lookup pgconn.LookupFunc) pgconn.LookupFunc {
	return func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		return lookup(ctx, host)
	}
}
