package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynq/x/metrics"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/queue/dashboard"
	"github.com/passbook/passbook/internal/worker"
)

// stopTimeout is how long requests to the operator's port may take after SIGTERM.
const stopTimeout = 5 * time.Second

// work serves the queues and sweeps until ctx ends. It returns when the running tasks have
// finished.
func work(ctx context.Context, cfg config.Process, log *slog.Logger) error {
	process, err := boot.Start(ctx, cfg, postgres.Config{Application: "passbook-worker"}, log)
	if err != nil {
		return err
	}
	defer process.Close()
	if err := postgres.AwaitExecute(ctx, process.Pool, log, "apply_job"); err != nil {
		return boot.Stopped(ctx, err)
	}
	pool, registry := process.Pool, process.Registry
	inspected := process.Queues.Only(process.Redis)
	ops.RegisterPool(registry, "applies", pool)
	asynqs := ops.NewSnapshot(metrics.NewQueueMetricsCollector(asynq.NewInspectorFromRedisClient(inspected)))
	registry.MustRegister(asynqs)

	counts := worker.NewMetrics(registry)
	publisher := queue.NewPublisher(process.Redis, process.Queues, log, counts.Unpublished)
	jobs := worker.New(worker.Config{
		Applier:   ledger.NewApplier(pool),
		Backlog:   job.NewBacklog(pool),
		Queue:     queue.NewClient(process.Redis, process.Queues, log, func() {}),
		Publisher: publisher,
		Metrics:   counts,
		Log:       log,
		Pruner:    auth.NewPruner(pool),
		Tracer:    process.Observed.Tracer,
	}, ctx.Done())
	queues := queue.NewServer(queue.ServerConfig{
		Redis: process.Redis, Queues: process.Queues, Handler: jobs.Apply, IsFailure: worker.IsFailure, Log: log,
		IsRedisAway: process.Observed.Redis.IsFailing, Paused: counts.Paused,
	})
	registry.MustRegister(ops.ConditionGauge("passbook_extra_queues",
		"1 while this worker serves queues of more partitions than its QUEUE_PARTITIONS, else 0; absent while Redis can't be read.", queues.HasExtraQueues))

	verifier := worker.NewVerifier(pool, queue.NewShared(process.Redis, process.Queues, "verification"), registry, log)
	board, err := dashboard.New(dashboard.Config{
		Path: ops.QueuesPath, Redis: process.Redis, Own: inspected, Write: cfg.QueuesWrite, MayOnlyLook: ops.MayOnlyLook, Log: log,
	})
	if err != nil {
		return err
	}
	checks := process.NewChecks(ctx, readiness(process, jobs, queues)...)
	process.Operator.Show(checks, map[string]http.Handler{ops.QueuesPath: board})

	defer boot.Background(ctx, publisher.Run)() // it publishes the last jobs, so it ends after the working
	defer boot.Background(ctx, checks.Run)()    // /readyz and /metrics are shown until the end
	defer boot.Background(ctx, asynqs.Run)()
	working, failed := errgroup.WithContext(ctx)
	working.Go(process.AwaitOperator)
	working.Go(func() error { return queues.Run(failed) })
	working.Go(func() error { return process.Owner.Run(failed) })
	working.Go(func() error { return jobs.Run(failed) })
	working.Go(func() error { return verifier.Run(failed) })
	working.Go(func() error {
		<-failed.Done() // ctx ended, or a part failed
		log.Info("worker stopping")
		process.Drain(ctx) // only the operator's port: the running tasks finish meanwhile
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return process.Operator.Shutdown(stopping)
	})
	log.Info("worker ready", "ops_addr", process.Operator.Addr(), "queue_prefix", cfg.QueuePrefix, "partitions", cfg.Partitions)
	if err := working.Wait(); err != nil {
		return err
	}
	log.Info("worker stopped")
	return nil
}

// readiness checks what the worker depends on, and whether its work gets done.
func readiness(process *boot.Process, jobs *worker.Worker, queues *queue.Server) []ops.Check {
	return []ops.Check{
		process.CheckPostgres(process.Pool),
		process.CheckRedis(true),
		{Name: "applies", Required: true, Probe: jobs.CheckApplies},
		{Name: "sweep", Required: true, Probe: func(context.Context) error { return jobs.CheckSweep() }},
		{Name: "queues", Probe: func(context.Context) error { return process.Owner.Err() }}, // without them the sweep applies
		{Name: "partitions", Probe: func(context.Context) error { return queues.ExtraQueues() }},
		{Name: "unpaused", Probe: func(context.Context) error { return queues.Paused() }}, // down while an operator has paused partitions
	}
}
