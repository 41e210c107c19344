package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// confirmTimeout bounds a confirmation, which may wait for a standby that is away.
const confirmTimeout = 1500 * time.Millisecond

// ErrUnconfirmed is returned for what was read from a server that has crashed since, or that
// is no more the one that confirms: what it showed may be gone.
var ErrUnconfirmed = errors.New("what was read can't be confirmed any more")

// errLifeless is for a pool that does not go through SecureSession.
var errLifeless = errors.New("the connection does not know its server's life")

// Gate lets an answer pass once everything that it shows is durable, as a commit with
// synchronous_commit on is: on a synchronous standby too, where there is one.
//
// A worker commits without a flush, so that for some milliseconds others see what a crash
// still undoes. A confirmation is a transaction that flushes. All transactions that had ended
// when it began are then durable, since the log is flushed in order. Those below its horizon
// are known to be so from then on, and reads of what they wrote wait for nothing. Reads of
// anything newer share the next confirmation, which begins when the one under way has ended.
//
// A crash of Postgres between a read and its confirmation may undo what was read. The
// confirmation then comes from another Life, and the answer is dropped.
type Gate struct {
	pool   *pgxpool.Pool   // that confirms
	others []*pgxpool.Pool // that read
	wanted chan struct{}   // holds one while next has not begun
	count  prometheus.Counter
	waits  prometheus.Histogram

	timeout time.Duration // of a confirmation

	mu   sync.Mutex    // guards what follows
	last horizon       // of the last confirmation
	next *confirmation // that has not begun; nil for none
	left Life          // whose connections were closed last
}

// horizon says that the transactions below xid, of a life, are durable.
type horizon struct {
	life Life
	xid  uint64
}

// confirmation is one that answers wait for. done is closed when the others are set.
type confirmation struct {
	done chan struct{}
	horizon
	err error
}

// NewGate confirms through pool what is read through it and through the others. Run must run
// for it to work.
func NewGate(registry prometheus.Registerer, pool *pgxpool.Pool, others ...*pgxpool.Pool) *Gate {
	g := &Gate{
		pool: pool, others: others, wanted: make(chan struct{}, 1), timeout: confirmTimeout,
		count: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_confirmations_total", Help: "Transactions that only made sure that what answers show is durable.",
		}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "passbook_confirmation_wait_seconds", Help: "How long answers waited until what they show was durable; those that waited.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
	}
	registry.MustRegister(g.count, g.waits)
	return g
}

// Watch begins a request: reads with its context tell what they show. The first request of a
// process waits for a first confirmation, to compare later ones with; without it an answer
// that has not told what it shows is dropped.
func (g *Gate) Watch(ctx context.Context) (context.Context, *Shown) {
	ctx, shown := WithShown(ctx)
	if shown.before = g.life(); shown.before == (Life{}) {
		_ = g.Wait(ctx, &Shown{}) // it is in no life yet
		shown.before = g.life()
	}
	return ctx, shown
}

// life is that of the last confirmation, zero before the first.
func (g *Gate) life() Life {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last.life
}

// Wait returns when all that was shown is durable. Where no read has told what it shows, it
// waits for a confirmation of all that there was. ErrUnconfirmed where it may be lost, and
// any other error where that could not be found out: then the answer must not be sent.
func (g *Gate) Wait(ctx context.Context, shown *Shown) error {
	if shown.torn {
		g.leave(shown.life)
		return ErrUnconfirmed
	}
	if shown.told && shown.newest == 0 {
		return nil
	}
	c := g.join(shown)
	if c == nil {
		return nil
	}
	life := shown.life
	if life == (Life{}) {
		// A confirmation in this life has ended before the request began: if the next one is
		// of the same, no crash was in between.
		life = shown.before
	}
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
		g.leave(life)
		return ErrUnconfirmed
	}
	return nil
}

// join is the next confirmation to begin, or nil where none is needed.
func (g *Gate) join(shown *Shown) *confirmation {
	g.mu.Lock()
	defer g.mu.Unlock()
	if shown.told && shown.life == g.last.life && shown.newest < g.last.xid {
		return nil
	}
	if g.next == nil {
		g.next = &confirmation{done: make(chan struct{})}
		g.wanted <- struct{}{}
	}
	return g.next
}

// leave closes the connections of all pools, once for a life: one that leads to a server
// that is no more the primary would serve answers that can't be confirmed for as long as it
// lives.
func (g *Gate) leave(life Life) {
	g.mu.Lock()
	again := g.left == life
	g.left = life
	g.mu.Unlock()
	if again || life == (Life{}) {
		return
	}
	for _, pool := range append([]*pgxpool.Pool{g.pool}, g.others...) {
		pool.Reset()
	}
}

// Run makes the confirmations that answers wait for until ctx ends, one at a time. The edge
// must have answered its last request by then.
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
	g.next = nil // answers that come from here on may show what this one does not cover
	g.mu.Unlock()
	defer close(c.done)
	if c.horizon, c.err = g.confirm(ctx); c.err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = c.horizon
}

// confirmSQL is ConfirmSQL, with the oldest transaction that had not ended before it wrote
// its message, and its own id: the statement's snapshot is taken before it does anything.
const confirmSQL = `SELECT pg_snapshot_xmin(pg_current_snapshot()), pg_current_xact_id(), (` + ConfirmSQL + `)`

// confirm returns when its transaction, and so all that had ended before it began, is
// durable.
//
// Only what is below the oldest that was under way counts as known: a transaction's
// subtransactions, whose ids are above its own, stand in no snapshot. Where none was under
// way, that is all up to its own.
func (g *Gate) confirm(ctx context.Context) (h horizon, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	g.count.Inc()
	rows, _ := g.pool.Query(ctx, confirmSQL) // CollectExactlyOneRow returns its error
	if h.life = lifeOf(rows.Conn()); h.life == (Life{}) {
		rows.Close()
		return h, cmp.Or(rows.Err(), errLifeless)
	}
	h.xid, err = pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (oldest uint64, err error) {
		var own uint64
		if err := row.Scan(&oldest, &own, nil); err != nil {
			return 0, err
		}
		if oldest == own {
			oldest++
		}
		return oldest, nil
	})
	return h, err
}
