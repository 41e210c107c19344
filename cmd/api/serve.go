package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/api"
	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/migrations"
)

// stopTimeout is how long requests in flight may take after SIGTERM.
const stopTimeout = 10 * time.Second

// serve runs the API until ctx ends; then /readyz says so, and for the shutdown
// delay requests are still answered. It stops in the order in which a job goes
// through it: first the requests, then the accepts, then the rings, so that
// each finds what it needs to the end.
func serve(ctx context.Context, cfg config.API, log *slog.Logger) error {
	schema, err := migrations.Version()
	if err != nil {
		return err
	}
	pools, err := openPools(ctx, cfg, schema, log)
	if err != nil {
		return err
	}
	defer pools.close()
	if err := ledger.AwaitSequences(ctx, pools.requests, log); err != nil {
		return err
	}
	installation, err := postgres.AwaitInstallation(ctx, pools.requests, log)
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
	registry := ops.NewRegistry()
	pools.register(registry)
	registry.MustRegister(ops.ErrorGauge(queue.OwnerMetric, queue.OwnerHelp, owner.Err))
	lost := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "passbook_rings_lost_total", Help: "Notifications without a task: Redis did not take it, or the pending list is full; the sweep finds their jobs.",
	})
	registry.MustRegister(lost)
	rings := queue.NewClient(redisClient, queue.Queues{Prefix: cfg.QueuePrefix, Partitions: cfg.Partitions, Owner: owner}, log, lost.Inc)
	acceptor := job.NewAcceptor(pools.accepts, rings, cfg.MaxQueuedPerAccount)
	gate := postgres.NewGate(registry, pools.accepts, pools.requests)
	checks := readiness(pools, redisClient, schema)
	edge, err := newEdge(cfg, pools, api.Config{ //nolint:contextcheck // a request has its own
		Acceptor: acceptor, Gate: gate, Checks: checks, Stopping: ctx.Done(), Registry: registry, Log: log,
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("HTTP_ADDR %s can't be listened on, choose another: %w", cfg.HTTPAddr, err)
	}
	operator, err := ops.Listen(ctx, ops.Config{
		Addr: cfg.OpsAddr, Token: cfg.OpsToken, Hosts: cfg.OpsHosts, Registry: registry,
		Checks: checks, Stopping: ctx.Done(), Log: log,
	})
	if err != nil {
		_ = listener.Close()
		return err
	}
	log.Info("api ready", "http_addr", listener.Addr().String(), "ops_addr", operator.Addr())

	serving, failed := errgroup.WithContext(ctx)
	serving.Go(func() error { return edge.Serve(listener) })
	serving.Go(operator.Serve)
	accepting := start(ctx, acceptor.Run)
	confirming := start(ctx, gate.Run)
	ringing := start(ctx, rings.Run)
	checking := start(ctx, owner.Run)

	<-failed.Done() // told to stop, or a server failed
	log.Info("api stopping", "delay", cfg.ShutdownDelay.String())
	if ctx.Err() != nil { // a server that failed leaves nothing to wait for
		<-time.After(cfg.ShutdownDelay)
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	stopErr := edge.Shutdown(stopping)
	accepting.stop()
	confirming.stop()
	ringing.stop()
	checking.stop()
	if err := operator.Shutdown(stopping); stopErr == nil {
		stopErr = err
	}
	if err := serving.Wait(); err != nil {
		return err
	}
	log.Info("api stopped")
	return stopErr
}

// newEdge completes edge with what stands on the database and on cfg.
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
	edge.Jobs = job.NewReader(pools.requests)
	edge.Statements = statement.New(pools.requests, pools.replica)
	edge.MaxConnections, edge.MaxConnectionsPerAddress = cfg.MaxConnections, cfg.MaxConnectionsPerAddress
	return api.New(edge)
}

// readiness asks after what the API stands on, as accepts find it: slow reads don't take
// it out of service. Without Redis it still accepts, and without the replica it still shows
// histories.
func readiness(pools pools, redisClient redis.UniversalClient, schema int64) []ops.Check {
	checks := []ops.Check{
		{Name: "postgres", Required: true, Probe: func(ctx context.Context) error {
			return postgres.CheckReady(ctx, pools.accepts, schema)
		}},
		{Name: "redis", Required: false, Probe: func(ctx context.Context) error {
			return redisClient.Ping(ctx).Err()
		}},
	}
	if pools.replica != nil {
		checks = append(checks, ops.Check{Name: "replica", Required: false, Probe: func(ctx context.Context) error {
			return postgres.CheckReplica(ctx, pools.replica, schema)
		}})
	}
	return checks
}

// background is a loop that outlives the context it was started from.
type background struct {
	cancel context.CancelFunc
	group  errgroup.Group
}

func start(ctx context.Context, loop func(context.Context) error) *background {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b := &background{cancel: cancel}
	b.group.Go(func() error { return loop(ctx) })
	return b
}

// stop ends the loop and waits for it; the loops that it is used for return no
// error.
func (b *background) stop() {
	b.cancel()
	_ = b.group.Wait()
}
