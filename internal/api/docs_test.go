package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browserWait bounds the whole use of a page, for a loaded machine.
const browserWait = 5 * time.Minute

// A person opens an account on the page and sees a deposit succeed. All that the page
// loads is the API's, and the policy that the page comes with forbids nothing that it does.
func TestDocs_InABrowser(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	p := openPage(t, "http://"+s.addr+"/docs")
	if title := p.text(".info h1"); !strings.Contains(title, "Passbook") {
		t.Fatalf("the page's title is %q", title)
	}

	p.try("accounts-openAccount")
	if status, body := p.execute("accounts-openAccount"); status != "401" {
		t.Fatalf("without a token: %s %s", status, body)
	}
	p.authorize(c.token)
	if status, body := p.execute("accounts-openAccount"); status != "201" {
		t.Fatalf("account not opened: %s %s", status, body)
	}
	p.try("jobs-deposit")
	job := p.job("jobs-deposit", "202")
	s.apply(t, job.ID)
	p.try("jobs-getJob")
	p.enter("jobs-getJob", "id", job.ID)
	if got := p.job("jobs-getJob", "200"); got.ID != job.ID || got.Status != "succeeded" {
		t.Errorf("the page shows %+v", got)
	}
	p.wantNothingElse("http://" + s.addr + "/")
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
		if event.Entry.Level == log.EntryLevelError && event.Entry.Source != log.EntrySourceNetwork { // which repeats answers, as the 401
			p.troubles = append(p.troubles, event.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		p.troubles = append(p.troubles, fmt.Sprintf("%+v", event.ExceptionDetails))
	}
}

func (p *page) wantNothingElse(prefix string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, url := range p.loaded {
		if !strings.HasPrefix(url, prefix) && !strings.HasPrefix(url, "data:") {
			p.t.Errorf("the page loads %s", url)
		}
	}
	if len(p.loaded) == 0 || len(p.troubles) > 0 {
		p.t.Errorf("%d requests, troubles: %q", len(p.loaded), p.troubles)
	}
}

func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// text waits until the element is there.
func (p *page) text(selector chromedp.CSS) string {
	p.t.Helper()
	text, err := chromedp.Run(p.ctx, chromedp.Text(selector))
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// authorize enters the token in the dialog.
func (p *page) authorize(token string) {
	p.t.Helper()
	const dialog = ".dialog-ux .modal-ux "
	p.do(
		chromedp.Click(chromedp.CSS(".scheme-container .btn.authorize")),
		chromedp.Focus(chromedp.CSS(dialog+"input[type=text]")),
		paste(token),
		chromedp.Click(chromedp.CSS(dialog+".auth-btn-wrapper .btn.authorize")),
		chromedp.Click(chromedp.CSS(dialog+".btn-done")),
	)
}

// try opens an operation and makes its fields writable.
func (p *page) try(operation string) {
	p.t.Helper()
	p.do(
		chromedp.Click(chromedp.CSS("#operations-"+operation+" .opblock-summary-control")),
		chromedp.Click(chromedp.CSS("#operations-"+operation+" .try-out__btn")),
	)
}

// enter writes over what the page proposes for a parameter.
func (p *page) enter(operation, parameter, value string) {
	p.t.Helper()
	p.do(
		chromedp.Focus(chromedp.CSS(fmt.Sprintf("#operations-%s tr[data-param-name=%q] input", operation, parameter))),
		chromedp.KeyEvent("a", chromedp.KeyModifiers(chromedp.ModifierCtrl)),
		paste(value),
	)
}

// paste enters a text at once where the focus is.
func paste(text string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, input.InsertText, input.InsertTextParams{Text: text})
		return err
	})
}

// execute sends the request and returns the status and the body that the page shows then.
func (p *page) execute(operation string) (status, body string) {
	p.t.Helper()
	block := "#operations-" + operation + " "
	p.do(chromedp.Click(chromedp.CSS(block + ".execute")))
	shown := chromedp.CSS(block + ".live-responses-table .response ")
	status = strings.TrimSpace(p.text(shown + ".response-col_status"))
	body = p.text(shown + ".highlight-code code")
	p.do(chromedp.Click(chromedp.CSS(block+".btn-clear")), chromedp.WaitNotPresent(shown))
	return status, body
}

// job is what the page shows of an operation that answers with one.
func (p *page) job(operation, wantStatus string) (job jobJSON) {
	p.t.Helper()
	status, body := p.execute(operation)
	if err := json.Unmarshal([]byte(body), &job); err != nil || status != wantStatus {
		p.t.Fatalf("%s: %s %s (%v)", operation, status, body, err)
	}
	return job
}

func TestDocs_Files(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	for target, contentType := range map[string]string{
		"/docs":                      "text/html; charset=utf-8",
		"/docs/start.js":             "text/javascript; charset=utf-8",
		"/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
		"/docs/swagger-ui.css":       "text/css; charset=utf-8",
	} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			c := c.in(t)
			a := c.get(target).want(http.StatusOK).wantHeader("Content-Type", contentType).
				wantHeader("Content-Security-Policy", docsPolicy).wantHeader("X-Content-Type-Options", "nosniff")
			etag := a.header.Get("ETag")
			if again := c.get(target, "If-None-Match", etag).want(http.StatusNotModified).wantHeader("ETag", etag); len(again.body) > 0 {
				t.Errorf("a body of %d bytes with 304", len(again.body))
			}
			c.get(target, "If-None-Match", `"older"`).want(http.StatusOK)
		})
	}
	if unsafe := strings.Contains(docsPolicy, "unsafe") || strings.Contains(docsPolicy, "http"); unsafe {
		t.Errorf("the policy allows more than this API: %s", docsPolicy)
	}
}
