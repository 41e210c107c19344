package worker

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
)

const finishedLine = "job finished"

// reportFinished writes a log line for each job, and the spans of the traced ones. The jobs' ends are
// flushed, so neither log nor trace shows an outcome that a crash of Postgres could still undo.
//
// Under load an API names only the requests that it has logged. The lines of their jobs have a limit
// of their own, so that the many other jobs don't take them.
func (w *Worker) reportFinished(applied []ledger.Applied) {
	ctx := context.Background() // the line is written even if the batch's context has ended
	for _, job := range applied {
		origin := w.origins.take(job.JobID)
		lines := w.lines
		if origin.RequestID == "" {
			lines = w.others
		}
		if lines.May(ctx, slog.LevelInfo) {
			writeFinished(ctx, lines, job, origin)
		}
		if origin.Span.IsSampled() && w.cfg.Tracer != nil {
			w.trace(job, origin)
		}
	}
}

// writeFinished writes the log line of a job.
func writeFinished(ctx context.Context, lines *ops.Lines, job ledger.Applied, origin origin) {
	attrs := []slog.Attr{
		slog.String("job_id", job.JobID.String()), slog.String("account", job.Account), slog.Int64("account_id", job.AccountID),
		slog.String("type", string(job.Type)), slog.String("outcome", string(job.Outcome)),
		slog.Float64("took_ms", float64(job.FinishedAt.Sub(job.CreatedAt).Microseconds())/1000),
	}
	if origin.RequestID != "" {
		attrs = append(attrs, slog.String("request_id", origin.RequestID))
	}
	if origin.Span.HasTraceID() {
		attrs = append(attrs, slog.String("trace_id", origin.Span.TraceID().String()))
	}
	if lines.IsDebug(ctx) {
		attrs = append(attrs, slog.Time("accepted_at", job.CreatedAt), slog.Time("finished_at", job.FinishedAt))
		if trip := job.Trip; trip != nil {
			attrs = append(attrs, slog.Int("batch", trip.Jobs), slog.Time("sent_at", trip.Sent), slog.Time("flushed_at", trip.Flushed))
		}
	}
	lines.Write(ctx, slog.LevelInfo, attrs...)
}

// attributesOf returns the attributes of a job's spans.
func attributesOf(job ledger.Applied) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("passbook.job.id", job.JobID.String()), attribute.String("passbook.account.number", job.Account),
		attribute.String("passbook.job.type", string(job.Type)), attribute.String("passbook.job.outcome", string(job.Outcome)),
	}
}
