// Package postgres opens the pool that everything of Passbook's works through,
// and sorts what goes wrong there. Its promise: a connection that would weaken
// durability is never handed out.
package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Bounds on what one statement may cost, so that a stuck one frees its
// connection by itself. Postgres counts them in milliseconds.
const (
	statementTimeout = 15 * time.Second
	lockTimeout      = 500 * time.Millisecond // an apply holds its account for a few
	idleTimeout      = 15 * time.Second       // of a transaction whose client went quiet
	connectTimeout   = 2 * time.Second
)

// maxIdleTime is after how long an idle connection is given back.
const maxIdleTime = time.Minute

// The same for serving connections, whose statements take milliseconds: what
// takes this long is stuck, and so is everybody behind it.
const (
	servingStatementTimeout = 3 * time.Second
	servingIdleTimeout      = 5 * time.Second
)

// RoundTripTimeout is how long a client waits for the next answer, before it
// takes the connection for one that swallows everything and leaves it. It is
// longer than Postgres's own time-outs on a serving connection, so that a
// statement which is only slow is ended by Postgres, and its error is heard. Applies
// that are sent together share it, some at a time.
const RoundTripTimeout = lockTimeout + servingStatementTimeout + 1500*time.Millisecond

// Config says which database to open and how wide.
type Config struct {
	URL      string
	MaxConns int32 // unless the URL says pool_max_conns; pgx's own default where 0
	// Part is how many of these are this pool's, where a process has several; all
	// where nil.
	Part        func(total int32) int32
	Application string       // what pg_stat_activity shows
	Log         *slog.Logger // told of a server that takes no writes; none where nil
	// Serving is for connections that answer clients or apply jobs: a plan made
	// while a table is small is kept when it has grown, so theirs go by index
	// from the start, and in its order: where an account has few transactions
	// the planner would rather read and sort them all than the page's alone.
	Serving bool
}

// Open makes a pool. It does not wait for the server: a process may start
// before its Postgres and serves as soon as that is there.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	poolConfig, err := ParseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("read the database URL: %w", err)
	}
	setBounds(poolConfig, cfg)
	conn := poolConfig.ConnConfig
	conn.ConnectTimeout = connectTimeout
	standby := standbyHandler{next: conn.OnPgError, log: cfg.Log}
	conn.OnPgError = standby.handle
	conn.LookupFunc = boundLookup(conn.LookupFunc)
	SetSession(conn, cfg.Application)
	params := conn.RuntimeParams
	params["statement_timeout"] = milliseconds(statementTimeout)
	params["lock_timeout"] = milliseconds(lockTimeout)
	params["idle_in_transaction_session_timeout"] = milliseconds(idleTimeout)
	// A host that vanishes between an apply and its COMMIT leaves the account locked
	// until Postgres notices: by itself after two hours, this way within 20 s.
	params["tcp_keepalives_idle"], params["tcp_keepalives_interval"], params["tcp_keepalives_count"] = "5", "5", "3"
	if cfg.Serving {
		params["enable_seqscan"] = "off"
		params["enable_bitmapscan"] = "off"
		params["jit"] = "off" // compiling a plan takes longer than it runs
		// With a batch's arrays in sight Postgres planned each insert anew, for longer
		// than it took (internal/bench/EXPERIMENTS.md).
		params["plan_cache_mode"] = "force_generic_plan"
		params["statement_timeout"] = milliseconds(servingStatementTimeout)
		params["idle_in_transaction_session_timeout"] = milliseconds(servingIdleTimeout)
	}
	poolConfig.BeforeConnect = newConnectLimiter().begin
	poolConfig.AfterConnect = SecureSession
	var p pinger
	poolConfig.ShouldPing = p.isDead
	p.pool, err = pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return p.pool, nil
}

// setBounds says how many connections the pool has and for how long, where the URL
// does not.
func setBounds(pool *pgxpool.Config, cfg Config) {
	says := func(name string) bool { return strings.Contains(cfg.URL, name+"=") }
	if cfg.MaxConns > 0 && !says("pool_max_conns") {
		pool.MaxConns = cfg.MaxConns
	}
	if cfg.Part != nil {
		pool.MaxConns = cfg.Part(pool.MaxConns)
		pool.MinConns, pool.MinIdleConns = min(pool.MinConns, pool.MaxConns), min(pool.MinIdleConns, pool.MaxConns)
	}
	if pool.MaxConnLifetimeJitter == 0 { // those that were opened together are not renewed together, under load
		pool.MaxConnLifetimeJitter = pool.MaxConnLifetime / 2
	}
	if !says("pool_max_conn_idle_time") { // a process at rest leaves the server's connections to others
		pool.MaxConnIdleTime = maxIdleTime
	}
	if !says("pool_health_check_period") { // which is when idle ones are given back
		pool.HealthCheckPeriod = min(pool.HealthCheckPeriod, pool.MaxConnIdleTime/2)
	}
}

// OpenServing makes the pool of a process that answers clients or applies jobs.
// It waits for a server that is not there yet, and answers ErrSchema where that
// has another schema than this build was written for.
func OpenServing(ctx context.Context, cfg Config, schema int64, log *slog.Logger) (*pgxpool.Pool, error) {
	cfg.Serving, cfg.Log = true, log
	pool, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	err = AwaitSchema(ctx, pool, schema, log)
	if err == nil {
		err = Await(ctx, pool, log, func(ctx context.Context) error { return warnOfUnsafe(ctx, pool, log) })
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// ConfirmSQL, in a transaction that reads, makes its commit wait as a writer's
// does, for the disk and for a synchronous standby, and so for all that it has
// read. A row can be seen before it is safe: where the standby was away, the
// writer was cut off while it waited, and the row is there for as long as this
// primary lives.
//
// It writes an empty message to the log, which nobody reads: a transaction that
// writes nothing there waits for nothing.
const ConfirmSQL = `SELECT pg_logical_emit_message(true, 'passbook', '')`

func milliseconds(d time.Duration) string {
	return fmt.Sprint(d.Milliseconds())
}
