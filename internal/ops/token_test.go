package ops_test

import (
	"net/http"
	"testing"

	"github.com/passbook/passbook/internal/ops"
)

const readToken = "fedcba9876543210"

// OPS_READ_TOKEN allows to read the metrics and the dashboard, and nothing else.
func TestReadToken(t *testing.T) {
	extra := map[string]http.Handler{
		ops.QueuesPath: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if ops.MayOnlyLook(r) {
				w.Header().Set("X-Looks", "true")
			}
		}),
		"/other": http.HandlerFunc(answerPath),
	}
	both := serve(t, ops.Config{Token: token, ReadToken: readToken, Extra: extra})
	alone := serve(t, ops.Config{ReadToken: readToken, Extra: extra})
	const ok, refused = http.StatusOK, http.StatusForbidden
	for _, test := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/metrics", ok},
		{http.MethodGet, "/queues", ok},
		{http.MethodGet, "/queues/", ok},
		{http.MethodGet, "/queues/api/queues", ok},
		{http.MethodPost, "/queues/api/queues/tx:1:pause", refused},
		{http.MethodDelete, "/queues/api/queues/tx:1", refused},
		{http.MethodPut, "/queues", refused},
		{http.MethodGet, "/queuesque", refused},
		{http.MethodGet, "/queues/../debug/pprof/cmdline", refused}, // the client follows to the clean path
		{http.MethodGet, "/debug/pprof/", refused},
		{http.MethodGet, "/debug/pprof/heap", refused},
		{http.MethodPost, "/debug/pprof/symbol", refused},
		{http.MethodGet, "/other", refused},
		{http.MethodPost, "/metrics", refused},
		{http.MethodGet, "/", refused},
	} {
		t.Run(test.method+test.path, func(t *testing.T) {
			for name, url := range map[string]string{"both": both, "alone": alone} {
				for _, as := range []func(*http.Request){authorization("Bearer " + readToken), func(r *http.Request) { r.SetBasicAuth("prometheus", readToken) }} {
					if answer := do(t, test.method, url+test.path, as); answer.status != test.want {
						t.Errorf("%s: %d, want %d", name, answer.status, test.want)
					}
				}
				for _, as := range []func(*http.Request){func(*http.Request) {}, authorization("Bearer " + readToken + "0")} {
					wantChallenge(t, test.path, do(t, test.method, url+test.path, as))
				}
			}
			if test.method == http.MethodGet {
				if answer := get(t, both+test.path, authorization("Bearer "+token)); answer.status == http.StatusForbidden || answer.header.Get("X-Looks") != "" {
					t.Errorf("OPS_TOKEN: %d %v", answer.status, answer.header)
				}
			}
			wantChallenge(t, test.path, do(t, test.method, alone+test.path, authorization("Bearer "+token)))
		})
	}
	if answer := get(t, both+"/queues", authorization("Bearer "+readToken)); answer.header.Get("X-Looks") != "true" {
		t.Error("the dashboard does not know that the request may only look")
	}
}
