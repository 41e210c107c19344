package postgres

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

type queryKey struct{}

// beginQuery begins the span of a query, in the span of ctx. Without a tracer, or if that span is not
// sampled, it costs a comparison. The span holds the statement but no parameters, which may be
// personal data.
func beginQuery(ctx context.Context, tracer trace.Tracer, sql string) context.Context {
	if tracer == nil || !trace.SpanFromContext(ctx).IsRecording() {
		return ctx
	}
	ctx, span := tracer.Start(ctx, "query", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("db.system.name", "postgresql"), attribute.String("db.query.text", sql)))
	return context.WithValue(ctx, queryKey{}, span)
}

// endQuery ends the span that beginQuery began.
func endQuery(ctx context.Context, err error) {
	span, isTraced := ctx.Value(queryKey{}).(trace.Span)
	if !isTraced {
		return
	}
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
