package dashboard_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/test/testenv"
)

const token = "0123456789abcdef"

// browserWait bounds the whole use of a page, for a loaded machine.
const browserWait = 5 * time.Minute

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
	p := openPage(t, fmt.Sprintf("http://operator:%s@%s%s", token, server.Addr(), root))
	p.wantText("tbody", "test:tx:0")
	p.do(chromedp.Navigate(own + "/queues/test:tx:0?status=pending"))
	p.wantText("tbody", info.ID[:8])
	p.do(chromedp.Navigate(own + "/redis"))
	p.wantText("#root", "Redis Info")
	p.wantNothingElse(own)
}

// page is what a person sees in Chromium.
type page struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex // guards what follows
	loaded   []string   // the URLs
	troubles []string   // what the policy stopped, and exceptions
}

func openPage(t *testing.T, url string) *page {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), browserWait)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1200, 1000),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true))...)
	t.Cleanup(cancel)
	p := &page{t: t}
	p.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(p.note))
	t.Cleanup(cancel)
	p.do(
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			if _, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{}); err != nil {
				return err
			}
			_, err := cdp.Call(ctx, target, log.Enable, cdp.Empty{})
			return err
		}),
		chromedp.Navigate(url),
	)
	return p
}

func (p *page) note(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event := event.(type) {
	case *network.EventRequestWillBeSent:
		p.loaded = append(p.loaded, event.Request.URL)
	case *log.EventEntryAdded:
		if event.Entry.Level == log.EntryLevelError {
			p.troubles = append(p.troubles, event.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		p.troubles = append(p.troubles, fmt.Sprintf("%+v", event.ExceptionDetails))
	}
}

// wantNothingElse checks that the page has loaded what begins with own, its font among that, and that
// nothing went wrong.
func (p *page) wantNothingElse(own string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	font := false
	for _, url := range p.loaded {
		url = strings.Replace(url, "operator:"+token+"@", "", 1) // of the first page
		if !strings.HasPrefix(url, own) && !strings.HasPrefix(url, "data:") {
			p.t.Errorf("the page loads %s", url)
		}
		font = font || strings.HasSuffix(url, ".woff2")
	}
	if !font || len(p.troubles) > 0 {
		p.t.Errorf("a font loaded: %t, troubles: %q", font, p.troubles)
	}
}

func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// wantText waits until the element has the text.
func (p *page) wantText(selector chromedp.CSS, want string) {
	p.t.Helper()
	testenv.Eventually(p.t, "the page to show "+want, func() bool {
		text, err := chromedp.Run(p.ctx, chromedp.Text(selector))
		if err != nil {
			p.t.Fatal(err)
		}
		return strings.Contains(text, want)
	})
}
