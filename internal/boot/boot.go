// Package boot starts the processes. It has what api and worker do alike before they serve:
// open Postgres and Redis, check them, and open the operator's port. Its promise: a process
// that can't serve ends with an error that says what to change.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/migrations"
)

// Main runs a program with a context that ends on SIGINT and SIGTERM, and returns its exit
// code: 0, 1 for an error, or 2 for ErrUsage. It writes an error to stderr.
func Main(name string, stderr io.Writer, run func(context.Context) error) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		if errors.Is(err, ErrUsage) {
			return exitUsage
		}
		return 1
	}
	return 0
}

// ErrStopped is returned if a process is stopped while it waits for its stores. That is no failure.
var ErrStopped = errors.New("stopped while it started")

// Stopped returns ErrStopped in the place of an error of a start whose context has ended.
func Stopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ErrStopped
	}
	return err
}

// Ended logs and returns the error that ended a serving process. It returns nil for ErrStopped.
func Ended(log *slog.Logger, err error) error {
	if errors.Is(err, ErrStopped) {
		log.Info("stopped before it was ready")
		return nil
	}
	if err != nil {
		log.Error("ended by an error", "error", err)
	}
	return err
}

// MaxConns is how many connections to Postgres a process has, unless the URL says
// pool_max_conns: one for each of sixteen partitions' tasks. Fewer leave two cores idle while
// commits wait for the disk (internal/bench/EXPERIMENTS.md).
const MaxConns = 16

// Process is what api and worker both serve with.
type Process struct {
	Config   config.Process
	Log      *slog.Logger
	Schema   int64 // the schema version that this build needs
	Pool     *pgxpool.Pool
	Redis    redis.UniversalClient
	Owner    *queue.Owner
	Queues   queue.Queues
	Registry *prometheus.Registry
	Operator *ops.Server // its port, open since Start
	Observed Observed

	serving errgroup.Group // serves the operator's port
}

// Start opens what a process serves with; Close must follow. It waits for a Postgres that is
// not there yet, and does not wait for Redis. It returns postgres.ErrSchema,
// postgres.ErrUnsuitable or postgres.ErrMisconfigured for a database that the process can't serve
// with, queue.ErrOldRedis for a Redis that is too old, and ErrStopped where ctx ends meanwhile.
//
// The operator's port is open while Start waits: a process that waits is alive and not ready.
//
// pool says which part of the connections Process.Pool has, and its application name.
func Start(ctx context.Context, cfg config.Process, pool postgres.Config, log *slog.Logger) (*Process, error) {
	p := &Process{Config: cfg, Log: log, Registry: ops.NewRegistry()}
	var err error
	if p.Schema, err = migrations.Version(); err != nil {
		return nil, err
	}
	if err := p.observe(ctx, &pool); err != nil {
		return nil, err
	}
	if err := p.openOperator(ctx); err != nil {
		return nil, err
	}
	pool.URL, pool.MaxConns = cfg.DatabaseURL, MaxConns
	if err := p.openStores(ctx, pool); err != nil {
		p.closeOperator()
		return nil, Stopped(ctx, err)
	}
	return p, nil
}

func (p *Process) openStores(ctx context.Context, pool postgres.Config) (err error) {
	if p.Pool, err = postgres.OpenServing(ctx, pool, p.Schema, p.Log); err != nil {
		return err
	}
	if err := p.openQueues(ctx); err != nil {
		p.Pool.Close()
		return err
	}
	return nil
}

// openOperator opens the operator's port. Until the process shows its own checks, /readyz says that
// Postgres is down, the one store that a start waits for. Once ctx ends, it says that the process
// stops.
func (p *Process) openOperator(ctx context.Context) (err error) {
	waiting := ops.Check{Name: "postgres", Required: true} // never probed, so down
	p.Operator, err = ops.Listen(ctx, ops.Config{
		Addr: p.Config.OpsAddr, Token: p.Config.OpsToken, ReadToken: p.Config.OpsReadToken, Hosts: p.Config.OpsHosts,
		Registry: p.Registry, Checks: ops.NewChecks(p.Log, waiting), Stopping: ctx.Done(), Log: p.Log,
	})
	if err != nil {
		return err
	}
	p.serving.Go(p.Operator.Serve)
	p.Log.Info("starting", "ops_addr", p.Operator.Addr())
	return nil
}

// AwaitOperator returns when the operator's port is closed: nil after a Shutdown.
func (p *Process) AwaitOperator() error { return p.serving.Wait() }

// closeOperator closes the operator's port at once.
func (p *Process) closeOperator() {
	p.Operator.Close()
	_ = p.serving.Wait() // returns nil after Close
}

// openQueues checks the sequences, on which the order of jobs rests, and opens Redis.
func (p *Process) openQueues(ctx context.Context) error {
	if err := ledger.AwaitSequences(ctx, p.Pool, p.Log); err != nil {
		return err
	}
	installation, err := postgres.AwaitInstallation(ctx, p.Pool, p.Log)
	if err != nil {
		return err
	}
	queue.LogTo(p.Log)
	if p.Redis, err = queue.Connect(p.Config.RedisURL); err != nil {
		return err
	}
	if err := queue.CheckVersion(ctx, p.Redis, p.Log); err != nil {
		_ = p.Redis.Close() // nothing is pending on it
		return err
	}
	p.observeRedis()
	p.Owner = queue.NewOwner(p.Redis, p.Config.QueuePrefix, installation, p.Log)
	p.Owner.Check(ctx)
	p.Queues = queue.Queues{Prefix: p.Config.QueuePrefix, Partitions: p.Config.Partitions, Owner: p.Owner}
	p.Registry.MustRegister(ops.ConditionGauge(queue.OwnerMetric, queue.OwnerHelp, p.Owner.IsOther))
	return nil
}

// Close sends the last traces, and closes the operator's port and the connections to Redis and Postgres.
func (p *Process) Close() {
	p.Observed.sendTraces()
	p.closeOperator()
	_ = p.Redis.Close() // nothing is pending on it
	p.Pool.Close()
}

// Background runs a loop that outlives ctx. stop ends the loop and waits for it; the loop's error is
// not used.
func Background(ctx context.Context, loop func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running errgroup.Group
	running.Go(func() error { return loop(ctx) })
	return func() {
		cancel()
		_ = running.Wait()
	}
}

// NewChecks makes the checks of the process, probes each for the first time, and registers their
// metrics.
func (p *Process) NewChecks(ctx context.Context, checks ...ops.Check) *ops.Checks {
	all := ops.NewChecks(p.Log, checks...)
	all.Probe(ctx)
	p.Registry.MustRegister(all)
	return all
}

// CheckPostgres is the readiness check of the primary, through pool: it takes writes and has the schema.
func (p *Process) CheckPostgres(pool *pgxpool.Pool) ops.Check {
	return ops.Check{Name: "postgres", Required: true, Store: true, Outage: p.Observed.Postgres, Probe: func(ctx context.Context) error {
		return postgres.CheckReady(ctx, pool, p.Schema)
	}}
}

// CheckRedis is the readiness check of Redis: it takes writes.
func (p *Process) CheckRedis(required bool) ops.Check {
	return ops.Check{Name: "redis", Required: required, Store: true, Outage: p.Observed.Redis, Probe: func(ctx context.Context) error {
		return queue.CheckWrites(ctx, p.Redis, p.Queues)
	}}
}

// Drain waits for the shutdown delay, in which the process still serves and /readyz already
// says that it stops. If ctx has not ended, a part of the process has failed: then Drain does not
// wait.
func (p *Process) Drain(ctx context.Context) {
	if ctx.Err() != nil {
		<-time.After(p.Config.ShutdownDelay)
	}
}

// OpenForOperator opens the database for a subcommand. It does not wait for Postgres.
func OpenForOperator(ctx context.Context, databaseURL string) (*pgxpool.Pool, error) {
	pool, err := postgres.Open(ctx, postgres.Config{URL: databaseURL, Application: "passbook-operator"})
	if err != nil {
		return nil, err
	}
	schema, err := migrations.Version()
	if err == nil {
		err = postgres.CheckSchema(ctx, pool, schema)
	}
	if err != nil {
		pool.Close()
		return nil, postgres.Explain(err)
	}
	return pool, nil
}
