package boot

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
)

// Observed holds what reports outages of a process's dependencies and traces its work.
type Observed struct {
	Postgres *ops.Outage
	Redis    *ops.Outage
	Tracer   trace.Tracer // nil for no traces

	sendTraces func() // the last ones
}

// meanwhile describes what each process does while a store is away.
var meanwhile = map[string]struct{ postgres, redis string }{
	"passbook-api": {
		postgres: "requests get 503 and /readyz is 503; an accepted job is not lost",
		redis:    "jobs are accepted, and workers find them without notifications; each API holds the limits by itself",
	},
	"passbook-worker": {
		postgres: "no job is applied; tasks wait and no attempt is counted",
		redis:    "the sweep applies jobs without tasks, more slowly",
	},
}

// observe prepares the log of outages and the traces of a process, and connects the pool with both. Lines
// that libraries write with the log package go to the log too.
func (p *Process) observe(ctx context.Context, pool *postgres.Config) (err error) {
	slog.SetDefault(p.Log)
	without := meanwhile[pool.Application]
	p.Observed.Postgres = ops.NewOutage(p.Log, "postgres", without.postgres)
	p.Observed.Redis = ops.NewOutage(p.Log, "redis", without.redis)
	traces := p.Config.Traces
	p.Observed.Tracer, p.Observed.sendTraces, err = ops.NewTracer(ctx, ops.TraceConfig{
		Endpoint: traces.Endpoint, Sampler: traces.Sampler, Ratio: traces.Ratio, Service: pool.Application,
	}, p.Log)
	p.Observed.ObservePool(pool)
	return err
}

// ObservePool makes a pool of the primary report outages of Postgres, and trace its queries.
func (o Observed) ObservePool(pool *postgres.Config) {
	pool.Note, pool.Tracer = o.Postgres.Note, o.Tracer
}

// observeRedis reports outages of Redis.
func (p *Process) observeRedis() { queue.Watch(p.Redis, p.Observed.Redis.Note) }
