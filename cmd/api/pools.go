package main

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
)

// acceptConns is how many of a process's connections are only for accepts, the look-ups that an
// accept waits for, confirmations, and the jobs that clients wait for. So reads, openings and exports
// don't delay them. Under load, two inserts, one confirmation and one read of finished jobs use four
// at once. The others replace connections that hang, until the pool has abandoned those.
const acceptConns = 6

// pools are the API's connections to Postgres.
type pools struct {
	requests *pgxpool.Pool // for everything but accepts; the process's own
	accepts  *pgxpool.Pool
	replica  *pgxpool.Pool // for histories; nil where there is no replica
}

// openPools opens the pools beside the process's own. It does not wait for the replica:
// without it the primary answers.
func openPools(ctx context.Context, cfg config.API, process *boot.Process) (p pools, err error) {
	p.requests = process.Pool
	accepts := postgres.Config{
		URL: cfg.DatabaseURL, MaxConns: boot.MaxConns, Part: partOfAccepts,
		Application: "passbook-api-accepts", Log: process.Log, Serving: true,
	}
	process.Observed.ObservePool(&accepts)
	if p.accepts, err = postgres.Open(ctx, accepts); err != nil {
		return p, err
	}
	if cfg.ReadDatabaseURL == "" {
		return p, nil
	}
	// The replica is compared with the primary, so each connection must know its server.
	err = postgres.AwaitDirect(ctx, p.requests, process.Log, "a DATABASE_URL beside a READ_DATABASE_URL", "name the server itself, or set no READ_DATABASE_URL")
	if err == nil {
		p.replica, err = postgres.Open(ctx, postgres.Config{
			URL: cfg.ReadDatabaseURL, MaxConns: boot.MaxConns, Application: "passbook-api-history", Serving: true, Direct: "READ_DATABASE_URL",
		})
	}
	if err != nil {
		p.close()
	}
	return p, err
}

// partOfAccepts is how many of a process's connections are for accepts, at least one.
func partOfAccepts(total int32) int32 { return max(min(acceptConns, total*3/8), 1) }

// partOfRequests is how many are for everything else, at least one.
func partOfRequests(total int32) int32 { return max(total-partOfAccepts(total), 1) }

// register adds the metrics of the pools to the registry.
func (p pools) register(registry prometheus.Registerer) {
	ops.RegisterPool(registry, "requests", p.requests)
	ops.RegisterPool(registry, "accepts", p.accepts)
	if p.replica != nil {
		ops.RegisterPool(registry, "replica", p.replica)
	}
}

// close closes the pools that openPools opened.
func (p pools) close() {
	p.accepts.Close()
	if p.replica != nil {
		p.replica.Close()
	}
}
