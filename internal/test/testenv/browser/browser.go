// Package browser shows a page to a test as Chromium shows it to a person, and notes what the page loads
// and what goes wrong.
package browser

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// longestUse bounds the whole use of a page, for a loaded machine.
const longestUse = 5 * time.Minute

// Page is a page in a browser of its own.
type Page struct {
	t        testing.TB
	ctx      context.Context
	expected string // an error with this text is no trouble; empty for none

	mu       sync.Mutex // guards the fields below
	loaded   []string   // the URLs, without their passwords
	troubles []string   // errors: what the policy stopped, what was not loaded, exceptions
}

// Open opens a page. Errors with the expected text are no trouble; empty for none.
func Open(t testing.TB, address, expected string) *Page {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longestUse)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1200, 1000),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true))...)
	t.Cleanup(cancel)
	p := &Page{t: t, expected: expected}
	p.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(p.note))
	t.Cleanup(cancel)
	p.Do(
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			if _, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{}); err != nil {
				return err
			}
			_, err := cdp.Call(ctx, target, log.Enable, cdp.Empty{})
			return err
		}),
		chromedp.Navigate(address),
	)
	return p
}

func (p *Page) note(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event := event.(type) {
	case *network.EventRequestWillBeSent:
		loaded := event.Request.URL
		if parsed, err := url.Parse(loaded); err == nil && parsed.User != nil {
			parsed.User = nil
			loaded = parsed.String()
		}
		p.loaded = append(p.loaded, loaded)
	case *log.EventEntryAdded:
		if event.Entry.Level == log.EntryLevelError && (p.expected == "" || !strings.Contains(event.Entry.Text, p.expected)) {
			p.troubles = append(p.troubles, event.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		p.troubles = append(p.troubles, fmt.Sprintf("%+v", event.ExceptionDetails))
	}
}

// Do does what a person does.
func (p *Page) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// Text waits until the element is there, and returns its text.
func (p *Page) Text(selector chromedp.CSS) string {
	p.t.Helper()
	text, err := chromedp.Run(p.ctx, chromedp.Text(selector))
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// WantOnly checks that the page has loaded something, nothing but what begins with own, and that nothing
// went wrong. It returns the URLs.
func (p *Page) WantOnly(own string) (loaded []string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, loaded := range p.loaded {
		if !strings.HasPrefix(loaded, own) && !strings.HasPrefix(loaded, "data:") {
			p.t.Errorf("the page loads %s", loaded)
		}
	}
	if len(p.loaded) == 0 || len(p.troubles) > 0 {
		p.t.Errorf("%d requests, troubles: %q", len(p.loaded), p.troubles)
	}
	return slices.Clone(p.loaded)
}
