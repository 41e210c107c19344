package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynq/x/metrics"
	"github.com/hibiken/asynqmon"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/worker"
	"github.com/passbook/passbook/migrations"
)

const (
	// maxConns are the connections to Postgres of one process, unless the URL
	// says pool_max_conns: one for each of sixteen partitions' tickets. Fewer
	// leave two cores idle while commits wait for the disk (internal/bench/EXPERIMENTS.md).
	maxConns = 16
	// stopTimeout is how long the operator's port may take after SIGTERM.
	stopTimeout = 5 * time.Second
)

// work serves the queues and sweeps until ctx ends, lets the tickets in hand
// finish, and returns.
func work(ctx context.Context, cfg config.Worker, log *slog.Logger) error {
	schema, err := migrations.Version()
	if err != nil {
		return err
	}
	pool, err := postgres.OpenServing(ctx, postgres.Config{
		URL: cfg.DatabaseURL, MaxConns: maxConns, Application: "passbook-worker",
	}, schema, log)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := ledger.AwaitSequences(ctx, pool, log); err != nil {
		return err
	}
	installation, err := postgres.AwaitInstallation(ctx, pool, log)
	if err != nil {
		return err
	}
	queue.LogTo(log)
	redisClient, err := queue.Connect(cfg.RedisURL)
	if err != nil {
		return err
	}
	defer redisClient.Close() //nolint:errcheck // nothing is pending on it

	owner := queue.NewOwner(redisClient, cfg.QueuePrefix, installation, log)
	owner.Check(ctx)
	all := queue.Queues{Prefix: cfg.QueuePrefix, Partitions: cfg.Partitions, Owner: owner}
	inspected := all.Only(redisClient)
	registry := ops.NewRegistry()
	ops.RegisterPool(registry, "applies", pool)
	registry.MustRegister(metrics.NewQueueMetricsCollector(asynq.NewInspectorFromRedisClient(inspected)),
		ops.ErrorGauge(queue.OwnerMetric, queue.OwnerHelp, owner.Err))

	jobs := worker.New(worker.Config{
		Applier: ledger.NewApplier(pool),
		Backlog: job.NewBacklog(pool),
		Tickets: queue.NewClient(redisClient, all, log, func() {}),
		Metrics: worker.NewMetrics(registry),
		Log:     log,

		Failed:   ledger.NewApplier(pool),
		Sessions: auth.NewPruner(pool),
	}, ctx.Done())
	queues := queue.NewServer(queue.ServerConfig{
		Redis: redisClient, Queues: all, Handler: jobs.Apply, IsFailure: worker.IsFailure, Log: log,
	})
	registry.MustRegister(ops.ErrorGauge("passbook_extra_queues",
		"1 while this worker serves queues of more partitions than its QUEUE_PARTITIONS; else 0.", queues.ExtraQueues))

	operator, err := ops.Listen(ctx, ops.Config{
		Addr: cfg.OpsAddr, Token: cfg.OpsToken, Hosts: cfg.OpsHosts, Registry: registry, Log: log,
		Checks: readiness(pool, redisClient, owner, queues, schema), Stopping: ctx.Done(),
		Extra: map[string]http.Handler{dashboardPath: dashboard(inspected)},
	})
	if err != nil {
		return err
	}

	working, failed := errgroup.WithContext(ctx)
	working.Go(operator.Serve)
	working.Go(func() error { return queues.Run(failed) })
	working.Go(func() error { return owner.Run(failed) })
	working.Go(func() error { return jobs.Run(failed) })
	working.Go(func() error {
		<-failed.Done() // told to stop, or one of them failed
		log.Info("worker stopping")
		if ctx.Err() != nil { // a part that failed leaves nothing to wait for
			<-time.After(cfg.ShutdownDelay) // of the operator's port: the tasks in hand end meanwhile
		}
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return operator.Shutdown(stopping)
	})
	log.Info("worker ready", "ops_addr", operator.Addr(), "queue_prefix", cfg.QueuePrefix, "partitions", cfg.Partitions)
	if err := working.Wait(); err != nil {
		return err
	}
	log.Info("worker stopped")
	return nil
}

const dashboardPath = "/queues"

// dashboard is Asynq's own, on the worker's own Redis client: another one, made of what
// Asynq reads in a URL, would know no ACL user, no parameter and no default port, and show
// another database. It asks for no token: the operator's port does.
func dashboard(client redis.UniversalClient) http.Handler {
	return asynqmon.New(asynqmon.Options{RootPath: dashboardPath, RedisConnOpt: ownClient{client}})
}

// ownClient has Asynq's parts share a client.
type ownClient struct{ client redis.UniversalClient }

// MakeRedisClient returns the client.
func (o ownClient) MakeRedisClient() any { return o.client }

// readiness asks after what the worker stands on.
func readiness(pool *pgxpool.Pool, redisClient redis.UniversalClient, owner *queue.Owner, queues *queue.Server, schema int64) []ops.Check {
	return []ops.Check{
		{Name: "postgres", Required: true, Probe: func(ctx context.Context) error {
			return postgres.CheckReady(ctx, pool, schema)
		}},
		{Name: "redis", Required: true, Probe: func(ctx context.Context) error {
			return redisClient.Ping(ctx).Err()
		}},
		{Name: "queues", Probe: func(context.Context) error { return owner.Err() }}, // without them the sweep applies
		{Name: "partitions", Probe: func(context.Context) error { return queues.ExtraQueues() }},
	}
}
