package boot

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
)

// Observed is what tells of a process's dependencies and of its work.
type Observed struct {
	Postgres *ops.Outage
	Redis    *ops.Outage
	Tracer   trace.Tracer // nil for no traces

	sendTraces func() // the last ones
}

// meanwhile says what each process does without a store.
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

// observe prepares the lines about outages and the traces of a process, and has the pool note how
// Postgres serves. The log package's lines, which libraries write, go to the log too.
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

// ObservePool has a pool of the primary note how Postgres serves, and make the spans of its queries.
func (o Observed) ObservePool(pool *postgres.Config) {
	pool.Note, pool.Tracer = o.Postgres.Note, o.Tracer
}

// observeRedis notes how Redis serves.
func (p *Process) observeRedis() { queue.Watch(p.Redis, p.Observed.Redis.Note) }
