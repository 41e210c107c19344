package api

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/passbook/passbook/internal/test/openapi"
)

// Responses that belong to no path are held against one of the test's own.
const nowhere = "/nowhere"

const nowherePath = `paths:
  ` + nowhere + `:
    get:
      security: []
      responses:
        default:
          description: Nothing is here.
          headers:
            X-Request-Id: { $ref: '#/components/headers/X-Request-Id' }
            Allow: { schema: { type: string, pattern: '^[A-Z]+(, [A-Z]+)*$' } }
            WWW-Authenticate: { schema: { type: string, const: Bearer } }
          content:
            application/problem+json:
              schema: { $ref: '#/components/schemas/Problem' }
`

// theContract is openapi.yaml, ready to hold requests and responses against.
var theContract = sync.OnceValues(func() (openapi.Document, error) {
	text := bytes.Replace(openAPIYAML, []byte("\npaths:\n"), []byte("\n"+nowherePath), 1)
	return openapi.Read(text,
		"Accept", "Authorization", "Connection", "Content-Length", "Content-Type", "Date", "Keep-Alive", "X-Forwarded-For", "X-Request-Id",
		"Cache-Control", "X-Content-Type-Options", // which checkCommon checks
		// What attacks send, and the API does not look at.
		"Origin", "Referer", "Cookie", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Original-Url", "X-Rewrite-Url", "X-Host",
		"X-Http-Method-Override", "X-Http-Method", "X-Method-Override")
})

// described returns the operations of openapi.yaml.
func described(t *testing.T) []openapi.Operation {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(c.Operations(), func(o openapi.Operation) bool { return o.Path == nowhere })
}

// againstContract returns what is wrong with an answer, and with the request, if
// it was not refused. req is nil where what was sent may be no request.
func againstContract(t *testing.T, req *http.Request, sent string, a answer) []string {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	faults := checkCommon(req, a)
	if req == nil || !c.Knows(req) || isOfAnyRoute(req, a) {
		if a.status < http.StatusBadRequest {
			return []string{"an answer to what is not described"}
		}
		other, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://test"+nowhere, nil)
		if err != nil {
			t.Fatal(err)
		}
		return append(faults, c.CheckResponse(other, a.status, a.header, a.body)...)
	}
	faults = append(faults, c.CheckResponse(req, a.status, a.header, a.body)...)
	if a.status < http.StatusBadRequest || a.status == http.StatusConflict || a.status == http.StatusTooManyRequests {
		faults = append(faults, c.CheckRequest(req, sent)...)
	}
	return faults
}

// isOfAnyRoute reports whether the server refuses the request before it looks for a route, as the
// description of the contract says.
func isOfAnyRoute(req *http.Request, a answer) bool {
	takesNoBody := req.Method == http.MethodGet || req.Method == http.MethodHead
	return a.status == http.StatusRequestHeaderFieldsTooLarge || a.status == http.StatusRequestEntityTooLarge && takesNoBody
}

// checkCommon checks the headers that every answer has.
func checkCommon(req *http.Request, a answer) (faults []string) {
	want := []string{"no-store"}
	if req != nil && a.status < http.StatusBadRequest && isDocument(req.URL.Path) {
		want = []string{"no-cache"} // with an ETag
	}
	if got := a.header.Values("Cache-Control"); !slices.Equal(got, want) {
		faults = append(faults, fmt.Sprintf("Cache-Control: %q, want %q", got, want))
	}
	if got := a.header.Values("X-Content-Type-Options"); !slices.Equal(got, []string{"nosniff"}) {
		faults = append(faults, fmt.Sprintf("X-Content-Type-Options: %q, want nosniff", got))
	}
	return faults
}

// isDocument reports whether the path is of the contract or of the page that shows it.
func isDocument(path string) bool {
	return strings.HasPrefix(path, "/openapi.") || path == "/docs" || strings.HasPrefix(path, "/docs/")
}
