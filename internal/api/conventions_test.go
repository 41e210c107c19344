package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ops"
)

func TestRequestID(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	account := c.open(0)
	large := strings.Repeat(" ", 65537)
	for _, id := range []string{"a", "A-Za.z0_9", strings.Repeat("x", 64), uuid.NewString()} {
		c.get("/livez", "X-Request-Id", id).wantHeader("X-Request-Id", id)
		c.get("/nowhere", "X-Request-Id", id).problem(http.StatusNotFound, "route_not_found").wantHeader("X-Request-Id", id)
		c.send(http.MethodPut, "/livez", "", "X-Request-Id", id).
			problem(http.StatusMethodNotAllowed, "method_not_allowed").wantHeader("X-Request-Id", id)
		c.send("BREW", "/livez", "", "X-Request-Id", id).
			problem(http.StatusMethodNotAllowed, "method_not_allowed").wantHeader("X-Request-Id", id)
		c.post(jobsOf(account, "deposits"), large, "X-Request-Id", id).
			problem(http.StatusRequestEntityTooLarge, "body_too_large").wantHeader("X-Request-Id", id)
		c.get("/v1/jobs/x", "X-Request-Id", id).problem(http.StatusNotFound, "job_not_found").wantHeader("X-Request-Id", id)
	}
	for _, id := range []string{"", strings.Repeat("x", 65), "a b", "a/b", "é", `a"`, "a,b"} {
		seen := map[string]bool{}
		for range 2 {
			seen[c.get("/livez", "X-Request-Id", id).header.Get("X-Request-Id")] = true
			seen[c.get("/nowhere", "X-Request-Id", id).header.Get("X-Request-Id")] = true
			seen[c.post(jobsOf(account, "deposits"), large, "X-Request-Id", id).header.Get("X-Request-Id")] = true
		}
		if len(seen) != 6 || seen[id] || seen[""] {
			t.Errorf("%q: got %v, want six ids of the server's own", id, seen)
		}
	}
}

func TestRouteNotFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, c := range []client{s.anonymous(t), s.user(t)} {
		for _, target := range []string{
			"/", "/v1", "/v1/", "/v1/users", "/v1/users/", "/v1/accounts/", "/v1/accounts/1234/", "/V1/accounts", "/v1/Accounts", "/livez/",
			"/v2/accounts", "/v1/accounts/1234/transactions/1/x", "/v1/accounts/1234/balance/", "/docs/", "/docs/LICENSE", "/v1//accounts", "/%00", "/metrics",
		} {
			if target == "/v1/users" { // there, for another method
				c.get(target).problem(http.StatusMethodNotAllowed, "method_not_allowed").wantHeader("Allow", "POST")
				continue
			}
			c.get(target).problem(http.StatusNotFound, "route_not_found").wantNoHeader("Allow")
		}
		c.post("/nowhere", `{`).problem(http.StatusNotFound, "route_not_found")
		c.send("BREW", "/nowhere", "").problem(http.StatusNotFound, "route_not_found")
	}
}

func TestMethodNotAllowed(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	tests := []struct{ target, allow string }{
		{"/v1/users", "POST"},
		{"/v1/users/me", "GET, HEAD"},
		{"/v1/accounts", "GET, HEAD, POST"},
		{"/v1/accounts/1234", "GET, HEAD"},
		{"/v1/accounts/1234/deposits", "POST"},
		{"/v1/accounts/1234/jobs", "GET, HEAD, POST"},
		{"/v1/jobs", "GET, HEAD"},
		{"/v1/jobs/x", "GET, HEAD"},
		{"/livez", "GET, HEAD"},
	}
	for _, test := range tests {
		for _, method := range []string{http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, "BREW", "get"} {
			c.send(method, test.target, "").problem(http.StatusMethodNotAllowed, "method_not_allowed").wantHeader("Allow", test.allow)
		}
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(5)
	made := c.ask(account, "deposits", 1)
	for _, target := range []string{
		"/v1/users/me", "/v1/accounts", "/v1/accounts?limit=1", "/v1/accounts/" + account.Number, "/v1/jobs/" + made.ID,
		jobsOf(account, "transactions"), jobsOf(account, "transactions/1"), jobsOf(account, "jobs"), "/livez", "/openapi.yaml", "/v1/jobs/x",
		"/v1/jobs?idempotency_key=k", "/v1/jobs",
	} {
		get, head := c.get(target, "X-Request-Id", "r"), c.send(http.MethodHead, target, "", "X-Request-Id", "r")
		if len(head.body) > 0 {
			t.Errorf("HEAD %s has a body", target)
		}
		head.body = get.body
		head.sameAs(get)
	}
}

// What is no request that can be read gets a problem with a request id, too.
func TestMalformedHTTP(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	tests := map[string]struct {
		text   string
		status int
		code   string
	}{
		"Noise":         {"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "malformed_request"},
		"ContentLength": {"POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400, "malformed_request"},
		"Chunk":         {"POST /v1/users HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400, "malformed_request"},
		"LongHeader":    {"GET /livez HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 20_000) + "\r\n\r\n", 431, "headers_too_large"},
		"LongTarget":    {"GET /livez?" + strings.Repeat("x", 20_000) + " HTTP/1.1\r\nHost: h\r\n\r\n", 431, "headers_too_large"},
		"Announced":     {"POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Length: 262145\r\n\r\n", 413, "body_too_large"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.in(t).sendRaw(test.text).problem(test.status, test.code)
		})
	}
}

func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	c := start(t, func(set *settings) {
		set.edit = func(a *API) { a.app.Server().ReadTimeout = 100 * time.Millisecond }
	}).anonymous(t)
	c.sendRaw("POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{").problem(http.StatusRequestTimeout, "request_timeout")
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var isDown atomic.Bool
	probe := func(context.Context) error {
		if isDown.Load() {
			return errors.New("secret address")
		}
		return nil
	}
	s := start(t, func(set *settings) {
		set.checks = []ops.Check{
			{Name: "postgres", Required: true, Probe: func(context.Context) error { return nil }},
			{Name: "redis", Probe: probe},
		}
	})
	c := s.anonymous(t)
	wantJSON(t, c.get("/livez").want(http.StatusOK).wantHeader("Cache-Control", "no-store"), `{"status":"ok"}`)
	const up = `{"status":"ok","dependencies":[{"name":"postgres","status":"up","required":true},{"name":"redis","status":"up","required":false}]}`
	wantJSON(t, c.get("/readyz").want(http.StatusOK).wantHeader("Cache-Control", "no-store"), up)

	t.Run("Down", func(t *testing.T) {
		isDown.Store(true)
		without := start(t, func(set *settings) {
			set.pool = s.pool
			set.checks = []ops.Check{{Name: "postgres", Required: true, Probe: probe}}
		})
		a := without.anonymous(t).get("/readyz").want(http.StatusServiceUnavailable)
		wantJSON(t, a, `{"status":"unavailable","dependencies":[{"name":"postgres","status":"down","required":true}]}`)
		if len(without.log.lines("secret address")) == 0 {
			t.Error("the log has no reason")
		}
		s.checks.Probe(t.Context())
		wantJSON(t, c.in(t).get("/readyz").want(http.StatusOK), strings.Replace(up, `"redis","status":"up"`, `"redis","status":"down"`, 1))
	})
}

// A panic is its own request's trouble.
func TestPanic(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) {
		set.edit = func(a *API) {
			a.app.Get("/panic", func(*fiber.Ctx) error { panic("secret thought") })
			a.app.Get("/teapot", func(*fiber.Ctx) error { return fiber.NewError(http.StatusTeapot, "secret tea") })
		}
	})
	c := s.anonymous(t)
	for target, secret := range map[string]string{"/panic": "secret thought", "/teapot": "secret tea"} {
		a := c.get(target, "X-Request-Id", "r"+target[1:]).problem(http.StatusInternalServerError, "internal_error")
		if strings.Contains(a.String(), "secret") || len(s.log.lines("r"+target[1:], secret)) != 1 {
			t.Errorf("%s\nthe log: %q", a, s.log.lines(secret))
		}
	}
	c.get("/livez").want(http.StatusOK)
}
