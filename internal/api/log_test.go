package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Each request has one line with its user, its account and job, and its outcome. The line has no secret
// of the client.
func TestRequestLine(t *testing.T) {
	t.Parallel()
	s := start(t)
	u := s.user(t)
	account := u.open(0).Number
	made := u.post("/v1/accounts/"+account+"/deposits", `{"amount": 1, "description": "Marker"}`, "Idempotency-Key", "Marker").want(http.StatusAccepted)
	job := strings.TrimPrefix(made.header.Get("Location"), "/v1/jobs/")
	for id, test := range map[string]struct {
		method, target, body string
		headers              []string
		want                 map[string]any // nil is not there
	}{
		"accept": {
			http.MethodPost, "/v1/accounts/" + account + "/deposits", `{"amount": 1, "description": "Marker"}`,
			[]string{"Idempotency-Key", "Marker"},
			map[string]any{
				"msg": "request", "level": "INFO", "method": "POST", "route": "/v1/accounts/:number/deposits", "status": 202.0, "outcome": "ok",
				"account": account, "user_id": u.userID.String(), "job_id": job,
			},
		},
		"batch": {
			http.MethodPost, "/v1/accounts/" + account + "/jobs", `{"jobs": [{"type": "deposit", "amount": 1, "description": "Marker", "idempotency_key": "Marker"}]}`, nil,
			map[string]any{"status": 202.0, "job_ids": []any{job}},
		},
		"job":     {http.MethodGet, "/v1/jobs/" + strings.ToUpper(job), "", nil, map[string]any{"route": "/v1/jobs/:id", "status": 200.0, "job_id": job}},
		"invalid": {http.MethodGet, "/v1/accounts?cursor=Marker", "", nil, map[string]any{"status": 400.0, "outcome": "invalid_cursor", "account": nil}},
		"forged": {http.MethodGet, "/v1/accounts", "", []string{"Authorization", "Bearer Marker"}, map[string]any{
			"status": 401.0, "outcome": "unauthenticated", "user_id": nil,
		}},
		"unknown": {http.MethodGet, "/v1/Marker?Marker", "", nil, map[string]any{"route": "none", "status": 404.0, "outcome": "route_not_found"}},
		"method":  {"MARKER", "/v1/accounts", "", nil, map[string]any{"method": "TRACE", "route": "none", "outcome": "method_not_allowed"}},
		"strange": {http.MethodGet, "/v1/accounts/" + strings.Repeat("Marker", 6), "", nil, map[string]any{"status": 404.0, "account": nil}},
		"probe":   {http.MethodGet, "/livez", "", nil, map[string]any{"level": "DEBUG", "status": 200.0}},
	} {
		t.Run(id, func(t *testing.T) {
			u.in(t).send(test.method, test.target, test.body, append([]string{"Content-Type", "application/json", "X-Request-Id", id}, test.headers...)...)
			lines := func() []string { return s.log.lines(`"request_id":"` + id + `"`) }
			testenv.Eventually(t, "the line", func() bool { return len(lines()) > 0 }) // it is written after the answer
			var got map[string]any
			if err := json.Unmarshal([]byte(lines()[0]), &got); err != nil || len(lines()) != 1 {
				t.Fatalf("%v: %q", err, lines())
			}
			for name, want := range test.want {
				if ids, ok := got[name].([]any); ok {
					if wanted, _ := want.([]any); len(ids) != 1 || ids[0] != wanted[0] {
						t.Errorf("%s: %v, want %v", name, ids, want)
					}
				} else if got[name] != want {
					t.Errorf("%s: %v, want %v", name, got[name], want)
				}
			}
			if took, ok := got["took_ms"].(float64); !ok || took <= 0 {
				t.Errorf("took_ms: %v", got["took_ms"])
			}
		})
	}
	if lines := s.log.lines("Marker"); len(lines) > 0 {
		t.Errorf("the log holds what only the client may know: %q", lines)
	}
}
