// Package postgres opens the pools through which all of Passbook uses Postgres, and classifies
// their errors. Its promise: no pool returns a connection that would weaken durability.
package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"
)

// Bounds of a statement, so that a stuck one frees its connection by itself.
const (
	statementTimeout = 15 * time.Second
	lockTimeout      = 500 * time.Millisecond // an apply locks its account for a few milliseconds
	idleTimeout      = 15 * time.Second       // of a transaction whose client sends nothing
	connectTimeout   = 2 * time.Second
)

// maxIdleTime is how long a connection stays open without use.
const maxIdleTime = time.Minute

// The same bounds for serving connections. Their statements take milliseconds. One that takes
// so long is stuck, and the requests that wait for it must not wait much longer.
const (
	servingStatementTimeout = 3 * time.Second
	servingIdleTimeout      = 5 * time.Second
)

// RoundTripTimeout is how long a process waits for the next result before it abandons the
// connection. It is longer than Postgres's own time-outs on a serving connection: if a statement
// is only slow, Postgres ends it, and the process gets the error. Applies that are sent together
// return their results a few at a time; the time begins anew with each of these.
const RoundTripTimeout = lockTimeout + servingStatementTimeout + 1500*time.Millisecond

// Config says which database to open and how wide.
type Config struct {
	URL      string
	MaxConns int32 // unless the URL says pool_max_conns; 0 for pgx's own default
	// Part returns how many of these connections this pool has, if a process has several
	// pools; nil for all.
	Part        func(total int32) int32
	Application string       // what pg_stat_activity shows
	Log         *slog.Logger // logs that a server takes no writes; nil for no log
	// Note, unless nil, is called with the hosts of the URL: with the error after a connection could not
	// be opened or was lost, and with nil after a query. Calls may overlap.
	Note func(hosts string, err error)
	// Tracer makes a span of each query in a traced request; nil for none.
	Tracer trace.Tracer
	// Serving is for connections that answer clients or apply jobs. On these the planner always reads
	// an index in its order. Otherwise Postgres would make a plan while a table is small, one that
	// reads and sorts all transactions of an account, and keep that plan when the table has grown.
	Serving bool
	// Direct names the URL where its connections can't go through a pooler; empty where they can.
	Direct string
}

// Open makes a pool. It does not wait for the server: a process may start before its Postgres.
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
	params := takeSettings(conn, cfg.Application)
	params["statement_timeout"] = milliseconds(statementTimeout)
	params["lock_timeout"] = milliseconds(lockTimeout)
	params["idle_in_transaction_session_timeout"] = milliseconds(idleTimeout)
	// When a worker's host vanishes between an apply and its COMMIT, the account stays locked
	// until Postgres notices: after two hours by default, within 20 s with these settings.
	params["tcp_keepalives_idle"], params["tcp_keepalives_interval"], params["tcp_keepalives_count"] = "5", "5", "3"
	if cfg.Serving {
		params["enable_seqscan"] = "off"
		params["enable_bitmapscan"] = "off"
		params["jit"] = "off" // compiling a plan takes longer than it runs
		// With a custom plan Postgres planned each insert of a batch anew, which took longer
		// than the insert (internal/bench/EXPERIMENTS.md).
		params["plan_cache_mode"] = "force_generic_plan"
		params["statement_timeout"] = milliseconds(servingStatementTimeout)
		params["idle_in_transaction_session_timeout"] = milliseconds(servingIdleTimeout)
	}
	for name := range params { // the bounds are Passbook's own, also if the URL has others
		delete(conn.RuntimeParams, name)
	}
	limiter := newConnectLimiter()
	limiter.tracer = cfg.Tracer
	if cfg.Note != nil {
		hosts := hostsOf(conn)
		limiter.note = func(err error) { cfg.Note(hosts, err) }
	}
	poolConfig.BeforeConnect = limiter.begin
	poolConfig.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if err := params.secure(ctx, conn); err != nil || cfg.Direct == "" {
			return err
		}
		return CheckDirect(conn, cfg.Direct, "name the server itself")
	}
	var p pinger
	poolConfig.ShouldPing = p.isDead
	p.pool, err = pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return p.pool, nil
}

// setBounds sets how many connections the pool has, and for how long, where the URL does not.
func setBounds(pool *pgxpool.Config, cfg Config) {
	isInURL := func(name string) bool { return strings.Contains(cfg.URL, name+"=") }
	if cfg.MaxConns > 0 && !isInURL("pool_max_conns") {
		pool.MaxConns = cfg.MaxConns
	}
	if cfg.Part != nil {
		pool.MaxConns = cfg.Part(pool.MaxConns)
		pool.MinConns, pool.MinIdleConns = min(pool.MinConns, pool.MaxConns), min(pool.MinIdleConns, pool.MaxConns)
	}
	if pool.MaxConnLifetimeJitter == 0 { // connections that opened together are not replaced together, under load
		pool.MaxConnLifetimeJitter = pool.MaxConnLifetime / 2
	}
	if !isInURL("pool_max_conn_idle_time") { // an idle process keeps no connections from others
		pool.MaxConnIdleTime = maxIdleTime
	}
	if !isInURL("pool_health_check_period") { // when the pool closes idle connections
		pool.HealthCheckPeriod = min(pool.HealthCheckPeriod, pool.MaxConnIdleTime/2)
	}
}

// OpenServing makes the pool of a process that answers clients or applies jobs. It waits for a
// server that is not there yet. ErrSchema where the database has another schema than this build
// was written for.
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
	if err == nil {
		err = Await(ctx, pool, log, func(ctx context.Context) error { return logPooler(ctx, pool, log) })
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// ConfirmSQL makes the commit of a reading transaction wait for the disk and for a synchronous
// standby, as the commit of a writer does. Then all that the transaction has read is durable
// too. A row may be visible before it is durable, even for long: if the standby is away and the
// writer's client gives up waiting, the row is visible for as long as this primary runs.
//
// It writes an empty message to Postgres's log, because the commit of a transaction that writes
// nothing there does not wait.
const ConfirmSQL = `SELECT pg_logical_emit_message(true, 'passbook', '') FROM ` + DurableSQL

func milliseconds(d time.Duration) string {
	return fmt.Sprint(d.Milliseconds())
}
