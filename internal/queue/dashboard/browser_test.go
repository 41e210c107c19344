package dashboard_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/test/testenv/browser"
)

const token = "0123456789abcdef"

// A person with OPS_TOKEN as password sees the queues and a task in a browser. All that the page loads
// is the worker's, the font too, and the policy that the page comes with forbids nothing that it does.
func TestDashboardInABrowser(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	info, err := asynq.NewClientFromRedisClient(client).Enqueue(asynq.NewTask("job:apply", []byte("a job")), asynq.Queue("test:tx:0"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := ops.Listen(t.Context(), ops.Config{
		Addr: "127.0.0.1:0", Token: token, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Extra: map[string]http.Handler{ops.QueuesPath: open(t, client, true, slog.New(slog.DiscardHandler))},
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		if err := server.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	own := "http://" + server.Addr() + root
	p := browser.Open(t, fmt.Sprintf("http://operator:%s@%s%s", token, server.Addr(), root), "")
	wantText(t, p, "tbody", "test:tx:0")
	p.Do(chromedp.Navigate(own + "/queues/test:tx:0?status=pending"))
	wantText(t, p, "tbody", info.ID[:8])
	p.Do(chromedp.Navigate(own + "/redis"))
	wantText(t, p, "#root", "Redis Info")
	if loaded := p.WantOnly(own); !slices.ContainsFunc(loaded, func(url string) bool { return strings.HasSuffix(url, ".woff2") }) {
		t.Errorf("the page loads no font: %q", loaded)
	}
}

// wantText waits until the element has the text.
func wantText(t *testing.T, p *browser.Page, selector chromedp.CSS, want string) {
	t.Helper()
	testenv.Eventually(t, "the page to show "+want, func() bool { return strings.Contains(p.Text(selector), want) })
}
