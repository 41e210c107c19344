package main

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	// maxConns are the connections to Postgres of one process, unless the URL
	// says pool_max_conns.
	maxConns = 16
	// acceptConns are those of them that only accepts, what they wait for, and confirmations
	// have, so that no read, opening or export keeps them waiting: two inserts and one
	// confirmation at once, and as many again while connections that hang are given up.
	acceptConns = 6
)

// pools are the API's connections to Postgres.
type pools struct {
	requests *pgxpool.Pool // what is no accept
	accepts  *pgxpool.Pool
	replica  *pgxpool.Pool // that histories are read through; nil where there is none
}

// openPools waits for Postgres, as postgres.OpenServing does. The replica may come and go:
// without it the primary answers.
func openPools(ctx context.Context, cfg config.API, schema int64, log *slog.Logger) (p pools, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.requests, err = postgres.OpenServing(ctx, postgres.Config{
		URL: cfg.DatabaseURL, MaxConns: maxConns, Part: partOfRequests, Application: "passbook-api",
	}, schema, log); err != nil {
		return p, err
	}
	if p.accepts, err = postgres.Open(ctx, postgres.Config{
		URL: cfg.DatabaseURL, MaxConns: maxConns, Part: partOfAccepts, Application: "passbook-api-accepts", Log: log, Serving: true,
	}); err != nil {
		return p, err
	}
	if cfg.ReadDatabaseURL != "" {
		p.replica, err = postgres.Open(ctx, postgres.Config{
			URL: cfg.ReadDatabaseURL, MaxConns: maxConns, Application: "passbook-api-history", Serving: true,
		})
	}
	return p, err
}

// partOfAccepts is how many of a process's connections accepts have to themselves, one
// at least.
func partOfAccepts(total int32) int32 { return max(min(acceptConns, total*3/8), 1) }

// partOfRequests are all the others, one at least.
func partOfRequests(total int32) int32 { return max(total-partOfAccepts(total), 1) }

// register has the registry show the pools of the primary.
func (p pools) register(registry prometheus.Registerer) {
	ops.RegisterPool(registry, "requests", p.requests)
	ops.RegisterPool(registry, "accepts", p.accepts)
}

func (p pools) close() {
	for _, pool := range []*pgxpool.Pool{p.requests, p.accepts, p.replica} {
		if pool != nil {
			pool.Close()
		}
	}
}
