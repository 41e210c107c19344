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

// maxTraced bounds the traced jobs that a worker keeps until they finish. Beyond it a worker forgets
// the oldest one, whose trace then has only the request's spans.
const maxTraced = 4096

// traced is what a notification says of a job's trace.
type traced struct {
	span  trace.SpanContext // of the request; invalid for a job that is not traced
	taken time.Time         // when this worker received the notification
}

// traces keeps the traced jobs that notifications have named. A job may be applied with a later job's
// notification, or in another partition's batch, so all batches share it.
type traces struct {
	n atomic.Int64 // of jobs; while it is 0, idOf and take need no lock

	mu    sync.Mutex // guards the fields below
	jobs  map[uuid.UUID]traced
	order []uuid.UUID // circular
	next  int         // the oldest
}

func newTraces() *traces {
	return &traces{jobs: map[uuid.UUID]traced{}, order: make([]uuid.UUID, maxTraced)}
}

// remember keeps the traces of notifications.
func (t *traces) remember(notifications []queue.Notification) {
	for _, n := range notifications {
		if n.Traces != "" {
			t.add(queue.ParseTraces(n.Traces), time.Now())
		}
	}
}

func (t *traces) add(parents map[uuid.UUID]string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, parent := range parents {
		span := ops.ParseTraceparent(parent)
		if !span.IsValid() {
			continue
		}
		if _, known := t.jobs[id]; !known {
			delete(t.jobs, t.order[t.next])
			t.order[t.next] = id
			t.next = (t.next + 1) % maxTraced
		}
		t.jobs[id] = traced{span: span, taken: now}
	}
	t.n.Store(int64(len(t.jobs)))
}

// idOf returns the id of a job's trace; empty for a job that is not traced.
func (t *traces) idOf(id uuid.UUID) string {
	if t.n.Load() == 0 {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if found, known := t.jobs[id]; known {
		return found.span.TraceID().String()
	}
	return ""
}

// take returns a finished job's trace, and forgets it.
func (t *traces) take(id uuid.UUID) traced {
	if t.n.Load() == 0 {
		return traced{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	found, known := t.jobs[id]
	if known {
		delete(t.jobs, id)
		t.n.Store(int64(len(t.jobs)))
	}
	return found
}

// trace makes the spans of a finished job: the task, since this worker received the notification; in
// it the apply; in the apply the call of Postgres. Jobs share round trips, so each traced job gets
// its own spans after the flush.
func (w *Worker) trace(job ledger.Applied, parent traced) {
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), parent.span)
	attributes := trace.WithAttributes(attributesOf(job)...)
	now := time.Now()
	ctx, task := w.cfg.Tracer.Start(ctx, "task", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(parent.taken), attributes)
	defer task.End(trace.WithTimestamp(now))
	trip := job.Trip
	if trip == nil { // an attempt without other jobs
		trip = &ledger.Trip{Jobs: 1, Began: parent.taken, Sent: parent.taken, Flushed: now}
	}
	ctx, apply := w.cfg.Tracer.Start(ctx, "apply", trace.WithTimestamp(trip.Began), attributes)
	_, sql := w.cfg.Tracer.Start(ctx, "apply_job", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(trip.Sent),
		trace.WithAttributes(attribute.String("db.system.name", "postgresql"), attribute.Int("db.operation.batch.size", trip.Jobs)))
	sql.End(trace.WithTimestamp(trip.Flushed))
	apply.End(trace.WithTimestamp(trip.Flushed))
}
