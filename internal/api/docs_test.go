package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"github.com/passbook/passbook/internal/test/testenv/browser"
)

// A person opens an account on the page and sees a deposit succeed. All that the page
// loads is the API's, and the policy that the page comes with forbids nothing that it does.
func TestDocs_InABrowser(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	p := page{browser.Open(t, "http://"+s.addr+"/docs", "status of 401"), t}
	if title := p.Text(".info h1"); !strings.Contains(title, "Passbook") {
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
	p.close("accounts-openAccount")
	p.try("jobs-deposit")
	job := p.job("jobs-deposit", "202")
	p.close("jobs-deposit")
	s.apply(t, job.ID)
	p.try("jobs-getJob")
	p.enter("jobs-getJob", "id", job.ID)
	if got := p.job("jobs-getJob", "200"); got.ID != job.ID || got.Status != "succeeded" {
		t.Errorf("the page shows %+v", got)
	}
	p.WantOnly("http://" + s.addr + "/")
}

// page is Swagger UI's.
type page struct {
	*browser.Page
	t *testing.T
}

// authorize enters the token in the dialog.
func (p page) authorize(token string) {
	p.t.Helper()
	const dialog = ".dialog-ux .modal-ux "
	p.Do(
		chromedp.Click(chromedp.CSS(".scheme-container .btn.authorize")),
		chromedp.Focus(chromedp.CSS(dialog+"input[type=text]")),
		paste(token),
		chromedp.Click(chromedp.CSS(dialog+".auth-btn-wrapper .btn.authorize")),
		chromedp.Click(chromedp.CSS(dialog+".btn-done")),
	)
}

// try opens an operation and makes its fields writable.
func (p page) try(operation string) {
	p.t.Helper()
	p.Do(
		chromedp.Click(chromedp.CSS("#operations-"+operation+" .opblock-summary-control")),
		chromedp.Click(chromedp.CSS("#operations-"+operation+" .try-out__btn")),
	)
}

// close closes an operation: what is open is drawn again with each change of the page.
func (p page) close(operation string) {
	p.t.Helper()
	p.Do(chromedp.Click(chromedp.CSS("#operations-" + operation + " .opblock-summary-control")))
}

// enter writes over what the page proposes for a parameter.
func (p page) enter(operation, parameter, value string) {
	p.t.Helper()
	p.Do(
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
func (p page) execute(operation string) (status, body string) {
	p.t.Helper()
	block := "#operations-" + operation + " "
	p.Do(chromedp.Click(chromedp.CSS(block + ".execute")))
	shown := chromedp.CSS(block + ".live-responses-table .response ")
	status = strings.TrimSpace(p.Text(shown + ".response-col_status"))
	body = p.Text(shown + ".highlight-code code")
	p.Do(chromedp.Click(chromedp.CSS(block+".btn-clear")), chromedp.WaitNotPresent(shown))
	return status, body
}

// job is what the page shows of an operation that answers with one.
func (p page) job(operation, wantStatus string) (job jobJSON) {
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
			c.get(target, "If-None-Match", `"older", W/`+etag).want(http.StatusNotModified)
			c.get(target, "If-None-Match", `"older"`).want(http.StatusOK)
		})
	}
	if unsafe := strings.Contains(docsPolicy, "unsafe") || strings.Contains(docsPolicy, "http"); unsafe {
		t.Errorf("the policy allows more than this API: %s", docsPolicy)
	}
}
