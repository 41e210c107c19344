package ops_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/ops"
)

func tracer(t *testing.T, endpoint string, log *slog.Logger) (trace.Tracer, func()) {
	t.Helper()
	tracer, stop, err := ops.NewTracer(t.Context(), ops.TraceConfig{Endpoint: endpoint, Sampler: "parentbased_traceidratio", Ratio: 1, Service: "test"}, log)
	if err != nil {
		t.Fatal(err)
	}
	return tracer, stop
}

// A process that stops sends its last spans.
func TestTracerSendsTheLast(t *testing.T) {
	var sent atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/traces" {
			sent.Add(1)
		}
	}))
	defer collector.Close()
	tracer, stop := tracer(t, collector.URL, slog.New(slog.DiscardHandler))
	_, span := tracer.Start(t.Context(), "last")
	span.End()
	stop()
	if sent.Load() == 0 {
		t.Error("the last span is lost")
	}
}

// While the collector is away spans are dropped: nothing waits, and the log has a line.
func TestTracerWithoutCollector(t *testing.T) {
	collector := httptest.NewServer(http.NotFoundHandler())
	collector.Close()
	out := &output{}
	tracer, stop := tracer(t, collector.URL, ops.NewLogger(out, slog.LevelInfo, true))
	for range 10_000 { // more than wait for the collector
		_, span := tracer.Start(t.Context(), "dropped")
		span.End()
	}
	stop()
	if n := out.count("\n"); n == 0 || n > 2 || out.count(`"msg":"`) != n {
		t.Errorf("%d lines, want one or two:\n%s", n, out)
	}
}

// Without an endpoint there is no tracer, and nothing to stop.
func TestNoTracer(t *testing.T) {
	if tracer, stop := tracer(t, "", slog.New(slog.DiscardHandler)); tracer != nil {
		t.Error("there is a tracer")
	} else {
		stop()
	}
}

func TestTraceparent(t *testing.T) {
	const text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	span := ops.ParseTraceparent(text)
	if got := ops.Traceparent(span); got != text || !span.IsSampled() {
		t.Errorf("%s, want %s", got, text)
	}
	for _, forged := range []string{"", "00", text[1:], text + "-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"} {
		if ops.ParseTraceparent(forged).IsValid() {
			t.Errorf("%q is valid", forged)
		}
	}
	if got := ops.Traceparent(trace.SpanContextFromContext(context.Background())); got != "" {
		t.Errorf("of no span: %q", got)
	}
}
