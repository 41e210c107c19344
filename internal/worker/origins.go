package worker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/queue"
)

// maxOrigins bounds the jobs whose origins a worker keeps until they finish, some 300 bytes each.
// Beyond it a worker forgets the oldest one. The line of that job doesn't name the request then, and
// its trace has only the request's spans.
const maxOrigins = 16_384

// origin is what a notification says of a job's request; the zero origin for a job that none named.
type origin struct {
	ops.Origin

	taken time.Time // when this worker received the notification
}

// origins keeps the origins of the jobs that notifications have named. A job may be applied with a
// later job's notification, or in another partition's batch, so all batches share it.
type origins struct {
	n atomic.Int64 // of jobs; while it is 0, traceOf and take need no lock

	mu    sync.Mutex // guards the fields below
	jobs  map[uuid.UUID]origin
	order []uuid.UUID // circular
	next  int         // the oldest
}

func newOrigins() *origins {
	return &origins{jobs: map[uuid.UUID]origin{}, order: make([]uuid.UUID, maxOrigins)}
}

// remember keeps the origins of notifications.
func (o *origins) remember(notifications []queue.Notification) {
	for _, n := range notifications {
		if n.Origins != "" {
			o.add(queue.ParseOrigins(n.Origins), time.Now())
		}
	}
}

func (o *origins) add(names map[uuid.UUID]string, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, name := range names {
		found := ops.ParseOrigin(name)
		if found.RequestID == "" {
			continue
		}
		if _, known := o.jobs[id]; !known {
			delete(o.jobs, o.order[o.next])
			o.order[o.next] = id
			o.next = (o.next + 1) % maxOrigins
		}
		o.jobs[id] = origin{Origin: found, taken: now}
	}
	o.n.Store(int64(len(o.jobs)))
}

// traceOf returns the id of a job's trace; empty for a job that is not traced.
func (o *origins) traceOf(id uuid.UUID) string {
	if o.n.Load() == 0 {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if found := o.jobs[id]; found.Span.HasTraceID() {
		return found.Span.TraceID().String()
	}
	return ""
}

// take returns a finished job's origin, and forgets it.
func (o *origins) take(id uuid.UUID) origin {
	if o.n.Load() == 0 {
		return origin{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	found, known := o.jobs[id]
	if known {
		delete(o.jobs, id)
		o.n.Store(int64(len(o.jobs)))
	}
	return found
}

// trace makes the spans of a finished job: the task, since this worker received the notification; in
// it the apply; in the apply the call of Postgres. Jobs share round trips, so each traced job gets
// its own spans after the flush.
func (w *Worker) trace(job ledger.Applied, origin origin) {
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), origin.Span)
	attributes := trace.WithAttributes(attributesOf(job)...)
	now := time.Now()
	ctx, task := w.cfg.Tracer.Start(ctx, "task", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(origin.taken), attributes)
	defer task.End(trace.WithTimestamp(now))
	trip := job.Trip
	if trip == nil { // an attempt without other jobs
		trip = &ledger.Trip{Jobs: 1, Began: origin.taken, Sent: origin.taken, Flushed: now}
	}
	ctx, apply := w.cfg.Tracer.Start(ctx, "apply", trace.WithTimestamp(trip.Began), attributes)
	_, sql := w.cfg.Tracer.Start(ctx, "apply_job", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(trip.Sent),
		trace.WithAttributes(attribute.String("db.system.name", "postgresql"), attribute.Int("db.operation.batch.size", trip.Jobs)))
	sql.End(trace.WithTimestamp(trip.Flushed))
	apply.End(trace.WithTimestamp(trip.Flushed))
}
