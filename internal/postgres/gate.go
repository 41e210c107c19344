package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// confirmTimeout bounds a confirmation, which may wait for a standby that is away.
const confirmTimeout = 1500 * time.Millisecond

// ErrUnconfirmed is returned if the server of a read has crashed since, or is not the server that
// confirms: what the read showed may be lost.
var ErrUnconfirmed = errors.New("the read can't be confirmed any more")

// errNoServerLife is returned for a connection that SecureSession has not set up.
var errNoServerLife = errors.New("the connection has no server life")

// Gate holds an answer until everything that it shows is as durable as a commit with
// synchronous_commit on: on disk, and on a synchronous standby where there is one.
//
// The worker commits without a flush. For some milliseconds other transactions see rows that a
// crash would still undo. A confirmation is a transaction that flushes. Postgres flushes its
// log in order, so a confirmation makes all transactions durable that had ended when it began.
// The gate keeps the last confirmation's horizon: an answer that shows only rows of transactions
// below it does not wait. Answers that show newer rows share the next confirmation, which begins
// when the current one has ended.
//
// A crash of Postgres between a read and its confirmation may undo what was read. Then the
// confirmation has another ServerLife than the read, and the answer is dropped. Behind a pooler a
// connection may outlive a crash, so there a read has no life, and counts for the one of the last
// confirmation before its request.
type Gate struct {
	pool   *pgxpool.Pool   // confirms
	others []*pgxpool.Pool // serve reads
	wanted chan struct{}   // holds one element while next waits to begin
	count  prometheus.Counter
	waits  prometheus.Histogram

	timeout time.Duration // of a confirmation

	mu        sync.Mutex    // guards the fields below
	last      horizon       // of the last confirmation
	next      *confirmation // the one that has not begun; nil for none
	abandoned ServerLife    // the one for which abandon last closed the connections
}

// horizon says that the transactions of a server life with ids below xid are durable.
type horizon struct {
	life ServerLife
	xid  uint64
}

// confirmation is one confirmation; answers wait for it. done is closed once the other fields
// are set.
type confirmation struct {
	done chan struct{}
	horizon
	err error
}

// NewGate makes a gate that confirms through pool what is read through pool and the others.
// It works while Run runs.
func NewGate(registry prometheus.Registerer, pool *pgxpool.Pool, others ...*pgxpool.Pool) *Gate {
	g := &Gate{
		pool: pool, others: others, wanted: make(chan struct{}, 1), timeout: confirmTimeout,
		count: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_confirmations_total", Help: "Transactions whose only purpose was to make durable what answers show.",
		}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "passbook_confirmation_wait_seconds", Help: "How long answers waited until what they show was durable; answers that did not wait are not counted.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
	}
	registry.MustRegister(g.count, g.waits)
	return g
}

// Watch begins a request: reads with the returned context report to Shown what they show.
//
// Watch also notes the server life of the last confirmation. Wait needs it if the reads report
// no server life of their own. Before the first confirmation there is none, so Watch makes one.
// If that fails, Wait drops an answer whose reads have reported nothing.
func (g *Gate) Watch(ctx context.Context) (context.Context, *Shown) {
	ctx, shown := WithShown(ctx)
	if shown.before = g.life(); shown.before == (ServerLife{}) {
		_ = g.Wait(ctx, &Shown{}) // for the confirmation alone: no server life is known yet
		shown.before = g.life()
	}
	return ctx, shown
}

// life is the server life of the last confirmation, zero before the first.
func (g *Gate) life() ServerLife {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last.life
}

// Wait returns nil once all that was shown is durable. If no read has reported what it shows,
// Wait confirms all that was visible. After an error the answer must not be sent. ErrUnconfirmed
// says that what was read may be lost; after any other error Wait does not know whether it is.
func (g *Gate) Wait(ctx context.Context, shown *Shown) error {
	if shown.torn {
		g.abandon(shown.life)
		return ErrUnconfirmed
	}
	if shown.reported && shown.newest == 0 {
		return nil
	}
	c := g.join(shown)
	if c == nil {
		return nil
	}
	// Where the reads reported no life: a confirmation of the life before ended before the request
	// began. If the next one is of the same life, there was no crash in between.
	life := cmp.Or(shown.life, shown.before)
	defer func(began time.Time) { g.waits.Observe(time.Since(began).Seconds()) }(time.Now())
	select {
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("confirm what was read: %w", ctx.Err())
	}
	if c.err != nil {
		return fmt.Errorf("confirm what was read: %w", c.err)
	}
	if c.life != life {
		g.abandon(life)
		return ErrUnconfirmed
	}
	return nil
}

// join returns the next confirmation to begin, or nil if none is needed.
func (g *Gate) join(shown *Shown) *confirmation {
	g.mu.Lock()
	defer g.mu.Unlock()
	// A read through a pooler has no life. It was of the life in which the request began, or of a
	// later one, which has all that is below the horizon: that was durable.
	if shown.reported && cmp.Or(shown.life, shown.before) == g.last.life && shown.newest < g.last.xid {
		return nil
	}
	if g.next == nil {
		g.next = &confirmation{done: make(chan struct{})}
		g.wanted <- struct{}{}
	}
	return g.next
}

// abandon closes the connections of all pools, once for each server life. A connection to a
// server that is no longer the primary would go on serving reads that can't be confirmed.
func (g *Gate) abandon(life ServerLife) {
	g.mu.Lock()
	isDone := g.abandoned == life
	g.abandoned = life
	g.mu.Unlock()
	if isDone || life == (ServerLife{}) {
		return
	}
	for _, pool := range append([]*pgxpool.Pool{g.pool}, g.others...) {
		pool.Reset()
	}
}

// Run makes the confirmations that answers wait for, one at a time, until ctx ends. By then
// the API must have answered its last request.
func (g *Gate) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wanted:
			g.confirmNext(ctx)
		}
	}
}

func (g *Gate) confirmNext(ctx context.Context) {
	g.mu.Lock()
	c := g.next
	g.next = nil // answers that come from now on need the one after this
	g.mu.Unlock()
	defer close(c.done)
	if c.horizon, c.err = g.confirm(ctx); c.err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = c.horizon
}

// confirmSQL is ConfirmSQL with two transaction ids: of the oldest transaction that had not ended
// when the statement took its snapshot, which is before it writes its message; and its own.
const confirmSQL = `SELECT pg_snapshot_xmin(pg_current_snapshot()), pg_current_xact_id(), (` + ConfirmSQL + `)`

// confirm returns once its own transaction is durable. Then every transaction that had ended
// before it began is durable too.
//
// The horizon is the id of the oldest transaction that had not ended. Many transactions above
// it have ended too. But a running transaction may have written rows in a subtransaction with a
// higher id, which the snapshot does not list, so no higher id is safe. If no other transaction
// was running, the horizon is just above confirm's own id.
func (g *Gate) confirm(ctx context.Context) (h horizon, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	g.count.Inc()
	conn, err := g.pool.Acquire(ctx)
	if err != nil {
		return h, err
	}
	defer conn.Release()
	var own uint64
	sql, dest := confirmSQL, []any{&h.xid, &own, nil}
	switch h.life = lifeOf(conn.Conn()); {
	case IsPooled(conn.Conn()): // the connection may outlive a crash, the transaction can't
		sql, dest = confirmSQL+`, `+lifeSQL, append(dest, &h.life.History, &h.life.Start)
	case h.life == ServerLife{}:
		return h, errNoServerLife
	}
	if err := conn.QueryRow(ctx, sql).Scan(dest...); err != nil {
		return h, err
	}
	if h.xid == own {
		h.xid++
	}
	return h, nil
}
