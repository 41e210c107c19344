package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ops"
)

// traceHeaders are a request's headers, as the W3C propagator reads them.
type traceHeaders struct{ c *fiber.Ctx }

// Get returns a copy of the header, because Fiber reuses its buffer.
func (h traceHeaders) Get(name string) string { return strings.Clone(h.c.Get(name)) }

// Set is not used.
func (traceHeaders) Set(string, string) {}

// Keys is not used.
func (traceHeaders) Keys() []string { return nil }

// beginTrace begins the span of a request, in the trace that the request's traceparent names. It
// returns nil if the process makes no traces.
func (a *API) beginTrace(c *fiber.Ctx) trace.Span {
	if a.cfg.Tracer == nil {
		return nil
	}
	ctx := propagation.TraceContext{}.Extract(c.UserContext(), traceHeaders{c})
	ctx, span := a.cfg.Tracer.Start(ctx, "request", trace.WithSpanKind(trace.SpanKindServer))
	c.SetUserContext(ctx)
	return span
}

// endTrace ends the span of a request. It names the route, and no part of the path or the query.
func endTrace(c *fiber.Ctx, span trace.Span, method, route string) {
	if span == nil {
		return
	}
	defer span.End()
	if !span.IsRecording() {
		return
	}
	status := c.Response().StatusCode()
	span.SetName(method + " " + route)
	span.SetAttributes(
		attribute.String("http.request.method", method), attribute.String("http.route", route),
		attribute.Int("http.response.status_code", status), attribute.String("passbook.request.id", requestID(c)))
	if id := jobOf(c); id != "" {
		span.SetAttributes(attribute.String("passbook.job.id", id))
	}
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
}

// originOf returns what the Acceptor needs to know of a request that is traced, or that gets a log
// line; nil for any other. So the worker knows the requests that have lines, and gives their jobs one.
func (a *API) originOf(c *fiber.Ctx) *job.Origin {
	parent := trace.SpanContextFromContext(c.UserContext())
	switch isTraced := a.cfg.Tracer != nil && parent.IsSampled(); {
	case !a.lines.reserve(c) && !isTraced:
		return nil
	case !isTraced:
		return &job.Origin{Name: ops.Origin{RequestID: requestID(c)}.String()}
	}
	origin := ops.Origin{RequestID: requestID(c), Span: parent}
	return &job.Origin{Name: origin.String(), Inserted: func(began, ended time.Time, requests int) {
		ctx := trace.ContextWithSpanContext(context.Background(), parent)
		_, span := a.cfg.Tracer.Start(ctx, "accept_jobs", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(began),
			trace.WithAttributes(attribute.String("db.system.name", "postgresql"), attribute.Int("db.operation.batch.size", requests)))
		span.End(trace.WithTimestamp(ended))
	}}
}
