package api

import (
	"net/http"
	"sync"
	"testing"

	"github.com/passbook/passbook/internal/test/openapi"
)

// theContract is openapi.yaml, ready to hold requests and responses against.
var theContract = sync.OnceValues(func() (openapi.Document, error) {
	return openapi.Read(openAPIYAML,
		// What attacks send, and the API does not look at.
		"Origin", "Referer", "Cookie", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Original-Url", "X-Rewrite-Url", "X-Host",
		"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Callback-Url", "X-Webhook-Url", "Destination", "Location", "Link",
		"Traceparent", "Tracestate", "Baggage", "X-B3-Traceid")
})

// described returns the operations of openapi.yaml.
func described(t *testing.T) []openapi.Operation {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	return c.Operations()
}

// againstContract returns what is wrong with an answer, and with the request, if
// it was not refused. req is nil where what was sent may be no request.
func againstContract(t *testing.T, req *http.Request, sent string, a answer) []string {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	if req == nil || !c.Knows(req) || isOfAnyRoute(req, a) {
		method := http.MethodGet
		if req != nil {
			method = req.Method
		}
		return c.CheckRefusal(method, a.status, a.header, a.body)
	}
	faults := c.CheckResponse(req, a.status, a.header, a.body)
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
