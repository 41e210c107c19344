package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/api"
	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/finished"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/limit"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/statement"
)

// stopTimeout is how long requests in flight may take after SIGTERM and the shutdown delay.
const stopTimeout = 10 * time.Second

// serve runs the API until ctx ends. /readyz then answers 503, and for the shutdown delay the
// API still answers requests.
func serve(ctx context.Context, cfg config.API, log *slog.Logger) error {
	process, err := boot.Start(ctx, cfg.Process, postgres.Config{Part: partOfRequests, Application: "passbook-api"}, log)
	if err != nil {
		return err
	}
	defer process.Close()
	pools, err := openPools(ctx, cfg, process)
	if err != nil {
		return boot.Stopped(ctx, err)
	}
	defer pools.close()
	pools.register(process.Registry)

	lost := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "passbook_notifications_dropped_total", Help: "Notifications that were not written to Redis, because it refused them or their list was full. The sweep finds their jobs.",
	})
	process.Registry.MustRegister(lost)
	loops := loops{
		notifier: queue.NewClient(process.Redis, process.Queues, log, lost.Inc),
		gate:     postgres.NewGate(process.Registry, pools.accepts, pools.requests),
		finished: finished.New(queue.NewSubscription(process.Redis, process.Queues, log), pools.accepts, log),
		owner:    process.Owner,
		checks:   process.NewChecks(ctx, readiness(process, pools)...),
	}
	loops.acceptor = job.NewAcceptor(pools.accepts, loops.notifier, cfg.MaxQueuedPerAccount)
	limits := newLimits(cfg, process)
	loops.limit = limits.Requests
	edge, err := newEdge(cfg, pools, api.Config{ //nolint:contextcheck // a request has its own
		Acceptor: loops.acceptor, Gate: loops.gate, Finished: loops.finished, Checks: loops.checks, Stopping: ctx.Done(),
		Limits: limits, Registry: process.Registry, Log: log, Tracer: process.Observed.Tracer,
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("listen on HTTP_ADDR %s, choose another: %w", cfg.HTTPAddr, err)
	}
	process.Operator.Show(loops.checks, nil)
	log.Info("api ready", "http_addr", listener.Addr().String(), "ops_addr", process.Operator.Addr())
	return serveUntilStopped(ctx, process, edge, listener, loops)
}

// loops are the API's background loops.
type loops struct {
	acceptor *job.Acceptor
	gate     *postgres.Gate
	notifier *queue.Client
	finished *finished.Hub
	owner    *queue.Owner
	checks   *ops.Checks
	limit    *limit.Limiter // of users; nil for none
}

// serveUntilStopped serves until ctx ends or a server fails. It stops in the order in which a
// job passes: first the requests, then the accepts, then the notifications. So each part still
// has what it needs.
func serveUntilStopped(ctx context.Context, process *boot.Process, edge *api.API, listener net.Listener, loops loops) error {
	serving, failed := errgroup.WithContext(ctx)
	serving.Go(func() error { return edge.Serve(listener) })
	serving.Go(process.AwaitOperator)
	var stops []func()
	for _, loop := range []func(context.Context) error{
		loops.finished.Run, loops.acceptor.Run, loops.gate.Run, loops.notifier.Run, loops.owner.Run, loops.limit.Run, loops.checks.Run,
	} {
		stops = append(stops, boot.Background(ctx, loop))
	}
	<-failed.Done() // ctx ended, or a server failed
	process.Log.Info("api stopping", "delay", process.Config.ShutdownDelay.String())
	process.Drain(ctx)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	stopErr := edge.Shutdown(stopping)
	for _, stop := range stops {
		stop()
	}
	if err := process.Operator.Shutdown(stopping); stopErr == nil {
		stopErr = err
	}
	if err := serving.Wait(); err != nil {
		return err
	}
	process.Log.Info("api stopped")
	return stopErr
}

// newEdge completes the configuration of the HTTP edge with what reads the database and cfg.
func newEdge(cfg config.API, pools pools, edge api.Config) (*api.API, error) {
	var keys []auth.Key
	for _, key := range cfg.JWTKeys {
		keys = append(keys, auth.Key{ID: key.ID, Secret: key.Secret})
		edge.CursorKeys = append(edge.CursorKeys, key.Secret)
	}
	service, err := auth.New(pools.requests, auth.Config{Keys: keys, Lookups: pools.accepts, Log: edge.Log, Registry: edge.Registry})
	if err != nil {
		return nil, err
	}
	edge.Auth = service
	edge.Accounts = ledger.NewAccounts(pools.requests)
	edge.Accounts.MaxPerUser = cfg.Limits.AccountsPerUser
	edge.Jobs = job.NewReader(pools.requests)
	edge.Statements = statement.New(pools.requests, pools.replica)
	edge.Events = event.NewReader(pools.requests)
	edge.MaxConnections, edge.MaxConnectionsPerAddress = cfg.MaxConnections, cfg.MaxConnectionsPerAddress
	return api.New(edge)
}

// readiness checks what the API depends on, through the pool of the accepts: slow reads don't
// take the API out of service. Without Redis it still accepts, without the replica it still
// shows histories, and where it can't accept, because its role lacks a right, it still reads.
func readiness(process *boot.Process, pools pools) []ops.Check {
	checks := []ops.Check{
		process.CheckPostgres(pools.accepts),
		process.CheckRedis(false),
		{Name: "accepts", Probe: func(ctx context.Context) error { return job.CheckAccept(ctx, pools.accepts) }},
	}
	if pools.replica != nil {
		checks = append(checks, ops.Check{Name: "replica", Required: false, Probe: func(ctx context.Context) error {
			return postgres.CheckReplica(ctx, pools.replica, process.Schema)
		}})
	}
	return checks
}
