package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
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

const (
	// maxConns are the connections to Postgres of one process, unless the URL
	// says pool_max_conns.
	maxConns = 16
	// acceptConns are those of them that only accepts and what they wait for have, so
	// that no read, opening or export keeps them waiting: two inserts at once, and as
	// many again while connections that hang are given up.
	acceptConns = 4
	// stopTimeout is how long requests in flight may take after SIGTERM.
	stopTimeout = 10 * time.Second
)

// serve runs the API until ctx ends; then /readyz says so, and for the shutdown
// delay requests are still answered. It stops in the order in which a job goes
// through it: first the requests, then the accepts, then the rings, so that
// each finds what it needs to the end.
func serve(ctx context.Context, cfg config.API, log *slog.Logger) error {
	schema, err := migrations.Version()
	if err != nil {
		return err
	}
	pool, err := postgres.OpenServing(ctx, postgres.Config{
		URL: cfg.DatabaseURL, MaxConns: maxConns, Part: partOfRequests, Application: "passbook-api",
	}, schema, log)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := ledger.AwaitSequences(ctx, pool, log); err != nil {
		return err
	}
	accepts, err := postgres.Open(ctx, postgres.Config{
		URL: cfg.DatabaseURL, MaxConns: maxConns, Part: partOfAccepts, Application: "passbook-api-accepts", Log: log, Serving: true,
	})
	if err != nil {
		return err
	}
	defer accepts.Close()
	replica, err := openReplica(ctx, cfg.ReadDatabaseURL)
	if err != nil {
		return err
	}
	if replica != nil {
		defer replica.Close()
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
	registry := ops.NewRegistry()
	ops.RegisterPool(registry, "requests", pool)
	ops.RegisterPool(registry, "accepts", accepts)
	registry.MustRegister(ops.ErrorGauge(queue.OwnerMetric, queue.OwnerHelp, owner.Err))
	lost := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "passbook_rings_lost_total", Help: "Notifications without a task: Redis did not take it, or the pending list is full; the sweep finds their jobs.",
	})
	registry.MustRegister(lost)
	rings := queue.NewClient(redisClient, queue.Queues{Prefix: cfg.QueuePrefix, Partitions: cfg.Partitions, Owner: owner}, log, lost.Inc)
	acceptor := job.NewAcceptor(accepts, rings, cfg.MaxQueuedPerAccount)
	checks := readiness(accepts, replica, redisClient, schema)
	edge, err := newEdge(cfg, pool, accepts, replica, acceptor, checks, ctx.Done(), registry, log) //nolint:contextcheck // a request has its own
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

// partOfAccepts is how many of a process's connections accepts have to themselves, one
// at least.
func partOfAccepts(total int32) int32 { return max(min(acceptConns, total/4), 1) }

// partOfRequests are all the others, one at least.
func partOfRequests(total int32) int32 { return max(total-partOfAccepts(total), 1) }

// openReplica makes the pool that histories are read through, and nil where there
// is no replica. It may come and go: without it the primary answers.
func openReplica(ctx context.Context, url string) (*pgxpool.Pool, error) {
	if url == "" {
		return nil, nil //nolint:nilnil // no replica is not a fault
	}
	return postgres.Open(ctx, postgres.Config{URL: url, MaxConns: maxConns, Application: "passbook-api-history", Serving: true})
}

func newEdge(cfg config.API, pool, accepts, replica *pgxpool.Pool, acceptor *job.Acceptor, checks []ops.Check,
	stopping <-chan struct{}, registry *prometheus.Registry, log *slog.Logger,
) (*api.API, error) {
	var keys []auth.Key
	var secrets [][]byte
	for _, key := range cfg.JWTKeys {
		keys = append(keys, auth.Key{ID: key.ID, Secret: key.Secret})
		secrets = append(secrets, key.Secret)
	}
	authService, err := auth.New(pool, auth.Config{Keys: keys, Lookups: accepts, Log: log, Registry: registry})
	if err != nil {
		return nil, err
	}
	return api.New(api.Config{
		Auth:       authService,
		Accounts:   ledger.NewAccounts(pool),
		Acceptor:   acceptor,
		Jobs:       job.NewReader(pool),
		Statements: statement.New(pool, replica),
		CursorKeys: secrets,
		Checks:     checks,
		Stopping:   stopping,
		Registry:   registry,
		Log:        log,

		MaxConnections: cfg.MaxConnections, MaxConnectionsPerAddress: cfg.MaxConnectionsPerAddress,
	})
}

// readiness asks after what the API stands on, as accepts find it: slow reads don't take
// it out of service. Without Redis it still accepts,
// and without the replica it still shows histories.
func readiness(pool, replica *pgxpool.Pool, redisClient redis.UniversalClient, schema int64) []ops.Check {
	checks := []ops.Check{
		{Name: "postgres", Required: true, Probe: func(ctx context.Context) error {
			return postgres.CheckReady(ctx, pool, schema)
		}},
		{Name: "redis", Required: false, Probe: func(ctx context.Context) error {
			return redisClient.Ping(ctx).Err()
		}},
	}
	if replica != nil {
		checks = append(checks, ops.Check{Name: "replica", Required: false, Probe: func(ctx context.Context) error {
			return postgres.CheckReplica(ctx, replica, schema)
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
