package api

import (
	"bufio"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/passbook/passbook/internal/job"
)

// unserved returns an API that has no database and serves on no address.
func unserved(t testing.TB) *API {
	t.Helper()
	a, err := New(Config{Acceptor: job.NewAcceptor(nil, silent{}, 1), Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// aDeposit is a request as it has arrived, without its body.
func aDeposit(t testing.TB) *fasthttp.RequestCtx {
	t.Helper()
	const head = "POST /v1/accounts/1234/deposits HTTP/1.1\r\nHost: bank.example\r\nAuthorization: Bearer aaaa.bbbb.cccc\r\n" +
		"Content-Type: application/json\r\nIdempotency-Key: 1\r\nX-Request-Id: mine\r\n\r\n"
	c := &fasthttp.RequestCtx{}
	if err := c.Request.Header.Read(bufio.NewReader(strings.NewReader(head))); err != nil {
		t.Fatal(err)
	}
	return c
}

// The answer that is made beforehand is the one that answerError makes, and counts as much.
func TestRefuser(t *testing.T) {
	t.Parallel()
	answers, counts := map[string]string{}, map[string]string{}
	for name, answer := range map[string]func(*API, *fasthttp.RequestCtx){
		"beforehand": func(a *API, c *fasthttp.RequestCtx) { a.refuser(job.ErrOverloaded)(c) },
		"answerError": func(a *API, c *fasthttp.RequestCtx) {
			refused := a.app.AcquireCtx(c)
			defer a.app.ReleaseCtx(refused)
			if err := a.answerError(refused, job.ErrOverloaded); err != nil {
				t.Fatal(err)
			}
		},
	} {
		registry := prometheus.NewRegistry()
		a := unserved(t)
		a.metrics = newMetrics(registry)
		c := aDeposit(t)
		answer(a, c)
		head, _, _ := strings.Cut(c.Response.Header.String(), "\r\nDate: ")
		_, rest, _ := strings.Cut(c.Response.Header.String(), " GMT\r\n")
		answers[name], counts[name] = head+"\r\n"+rest+string(c.Response.Body()), exposed(t, registry)
	}
	if answers["beforehand"] != answers["answerError"] {
		t.Errorf("got\n%s\nwant\n%s", answers["beforehand"], answers["answerError"])
	}
	if counts["beforehand"] != counts["answerError"] {
		t.Errorf("got\n%s\nwant\n%s", counts["beforehand"], counts["answerError"])
	}
}

// exposed returns the metrics as text, without those that a request leaves at 0.
func exposed(t *testing.T, registry *prometheus.Registry) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if m.GetCounter().GetValue() > 0 || m.GetHistogram().GetSampleCount() > 0 {
				fmt.Fprintln(&b, family.GetName(), m.GetLabel(), m.GetCounter().GetValue(), m.GetHistogram().GetSampleCount())
			}
		}
	}
	return b.String()
}

// BenchmarkShed is what the API itself spends on a deposit that is refused because too many wait.
// What the server and the kernel spend comes on top.
func BenchmarkShed(b *testing.B) {
	a := unserved(b)
	a.overloaded = func() bool { return true }
	handle := a.app.Server().Handler
	c := aDeposit(b)
	b.ReportAllocs()
	for b.Loop() {
		c.Response.Reset()
		handle(c)
	}
	if c.Response.StatusCode() != fasthttp.StatusServiceUnavailable {
		b.Errorf("got %s", &c.Response)
	}
}
