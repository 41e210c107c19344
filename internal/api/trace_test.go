package api

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// Without a collector and a log line a request makes no span, and nothing for one.
func TestNoTracesCostNothing(t *testing.T) {
	app := fiber.New()
	request := &fasthttp.RequestCtx{}
	request.Request.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	c := app.AcquireCtx(request)
	defer app.ReleaseCtx(c)
	a := &API{lines: newRequestLines(slog.New(slog.DiscardHandler))}
	n := testing.AllocsPerRun(1000, func() {
		span := a.beginTrace(c)
		if a.originOf(c) != nil {
			t.Error("it is traced")
		}
		endTrace(c, span, http.MethodGet, "/")
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}
