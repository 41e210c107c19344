package ops

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

const (
	// traceFlush bounds how long a process that stops sends its last spans.
	traceFlush = 2 * time.Second
	// traceLogPause is the shortest time between two lines about spans that can't be sent.
	traceLogPause = time.Minute
)

// TraceConfig says which requests are traced, and where the traces are sent. The OpenTelemetry library
// reads further standard variables itself.
type TraceConfig struct {
	Endpoint string // an http:// or https:// URL of an OTLP collector; empty for no traces
	Sampler  string // as OTEL_TRACES_SAMPLER names it
	Ratio    float64
	Service  string // the service's name, unless OTEL_SERVICE_NAME is set
}

// NewTracer returns the process's tracer, and a function that sends its last spans. If no endpoint is
// set, the tracer is nil and the function does nothing. Spans are sent in the background. While the
// collector is away, spans beyond a bound are dropped, and no request waits.
func NewTracer(ctx context.Context, cfg TraceConfig, log *slog.Logger) (trace.Tracer, func(), error) {
	if cfg.Endpoint == "" {
		return nil, func() {}, nil
	}
	logTraces(log)
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.Endpoint+"/v1/traces"))
	if err != nil {
		return nil, nil, fmt.Errorf("send traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", cfg.Service)), resource.WithFromEnv())
	if err != nil {
		return nil, nil, fmt.Errorf("describe this process in traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter), sdktrace.WithResource(about), sdktrace.WithSampler(samplerOf(cfg)))
	return provider.Tracer("github.com/passbook/passbook"), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceFlush)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("last traces not sent", "error", err)
		}
	}, nil
}

// samplerOf returns the sampler that the configuration names.
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
func samplerOf(cfg TraceConfig) sdktrace.Sampler {
	samplers := map[string]sdktrace.Sampler{
		"always_on":                sdktrace.AlwaysSample(),
		"always_off":               sdktrace.NeverSample(),
		"traceidratio":             sdktrace.TraceIDRatioBased(cfg.Ratio),
		"parentbased_always_on":    sdktrace.ParentBased(sdktrace.AlwaysSample()),
		"parentbased_always_off":   sdktrace.ParentBased(sdktrace.NeverSample()),
		"parentbased_traceidratio": sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Ratio)),
	}
	return samplers[cfg.Sampler]
}

// logTraces sends the library's messages to the log, for the whole process.
func logTraces(log *slog.Logger) {
	logs := rate.Sometimes{First: 1, Interval: traceLogPause}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logs.Do(func() { log.Warn("traces not sent", "error", err) })
	}))
	otel.SetLogger(logr.FromSlogHandler(log.Handler()))
}

// Traceparent is a span as the W3C header names it.
func Traceparent(span trace.SpanContext) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), span), carrier)
	return carrier[traceparent]
}

// ParseTraceparent reads what Traceparent wrote. It returns an invalid span for anything else.
func ParseTraceparent(text string) trace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{traceparent: text})
	return trace.SpanContextFromContext(ctx)
}

const traceparent = "traceparent"
