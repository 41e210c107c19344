package ops_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ops"
)

const token = "0123456789abcdef"

func TestGuard(t *testing.T) {
	routes := []string{
		"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline",
		"/queues", "/queues/", "/queues/api/queues",
	}
	callers := map[string]struct {
		authorize func(*http.Request)
		ok        bool
	}{
		"Nothing":        {func(*http.Request) {}, false},
		"Bearer":         {authorization("Bearer " + token), true},
		"bearer":         {authorization("bearer " + token), true},
		"BearerWrong":    {authorization("Bearer 0123456789abcdeF"), false},
		"BearerLonger":   {authorization("Bearer " + token + "0"), false},
		"BearerEmpty":    {authorization("Bearer "), false},
		"OtherScheme":    {authorization("Token " + token), false},
		"NoScheme":       {authorization(token), false},
		"Basic":          {func(r *http.Request) { r.SetBasicAuth("anyone", token) }, true},
		"BasicWrong":     {func(r *http.Request) { r.SetBasicAuth("anyone", "wrong") }, false},
		"BasicEmpty":     {func(r *http.Request) { r.SetBasicAuth("", "") }, false},
		"BasicAsUser":    {func(r *http.Request) { r.SetBasicAuth(token, "") }, false},
		"TokenInQuery":   {func(r *http.Request) { r.URL.RawQuery = "token=" + token }, false},
		"BasicMalformed": {authorization("Basic " + token), false},
	}
	guarded := serve(t, ops.Config{Token: token, Extra: map[string]http.Handler{"/queues": http.HandlerFunc(answerPath)}})
	open := serve(t, ops.Config{Extra: map[string]http.Handler{"/queues": http.HandlerFunc(answerPath)}})
	for name, caller := range callers {
		t.Run(name, func(t *testing.T) {
			for _, route := range routes {
				answer := get(t, guarded+route, caller.authorize)
				if answer.ok() != caller.ok {
					t.Errorf("%s: %d", route, answer.status)
				}
				if !caller.ok {
					wantChallenge(t, route, answer)
				}
				if answer := get(t, open+route, caller.authorize); !answer.ok() {
					t.Errorf("%s without a token to ask for: %d", route, answer.status)
				}
			}
			for _, route := range []string{"/livez", "/readyz"} {
				if answer := get(t, guarded+route, caller.authorize); !answer.ok() {
					t.Errorf("%s: %d", route, answer.status)
				}
			}
		})
	}
	t.Run("UnknownRoutes", func(t *testing.T) {
		for _, route := range []string{"/", "/nowhere", "/livez/", "/readyz/metrics"} {
			wantChallenge(t, route, get(t, guarded+route))
			if answer := get(t, guarded+route, authorization("Bearer "+token)); answer.status != http.StatusNotFound {
				t.Errorf("%s with the token: %d", route, answer.status)
			}
		}
	})
}

func TestOtherSites(t *testing.T) {
	url := serve(t, ops.Config{Token: token, Extra: map[string]http.Handler{"/queues": http.HandlerFunc(answerPath)}})
	for origin, want := range map[string]int{
		"":                     http.StatusOK, // no browser
		url:                    http.StatusOK,
		"https://evil.example": http.StatusForbidden,
	} {
		t.Run("Origin="+origin, func(t *testing.T) {
			answer := do(t, http.MethodPost, url+"/queues/api/queues/tx:1:pause", authorization("Bearer "+token), func(r *http.Request) {
				if origin != "" {
					r.Header.Set("Origin", origin)
				}
			})
			if answer.status != want {
				t.Errorf("%d, want %d", answer.status, want)
			}
		})
	}
}

func TestExtra(t *testing.T) {
	url := serve(t, ops.Config{Extra: map[string]http.Handler{"/queues": http.HandlerFunc(answerPath)}})
	for _, path := range []string{"/queues", "/queues/", "/queues/static/app.js"} {
		if answer := get(t, url+path); answer.header.Get("X-Path") != path {
			t.Errorf("%s did not reach the handler: %d %v", path, answer.status, answer.header)
		}
	}
	if answer := get(t, url+"/queuesque"); answer.status != http.StatusNotFound {
		t.Errorf("/queuesque: %d", answer.status)
	}
}

func TestReadyz(t *testing.T) {
	up := func(context.Context) error { return nil }
	down := func(context.Context) error { return errors.New("password hunter2 refused") }
	tests := map[string]struct {
		checks []ops.Check
		status int
		want   ops.Readiness
	}{
		"NoChecks": {
			nil, http.StatusOK, ops.Readiness{Status: "ok", Dependencies: []ops.Dependency{}},
		},
		"AllUp": {
			[]ops.Check{check("postgres", true, up), check("redis", false, up)},
			http.StatusOK,
			ops.Readiness{Status: "ok", Dependencies: states("up", "up")},
		},
		"OptionalDown": {
			[]ops.Check{check("postgres", true, up), check("redis", false, down)},
			http.StatusOK,
			ops.Readiness{Status: "ok", Dependencies: states("up", "down")},
		},
		"RequiredDown": {
			[]ops.Check{check("postgres", true, down), check("redis", false, up)},
			http.StatusServiceUnavailable,
			ops.Readiness{Status: "unavailable", Dependencies: states("down", "up")},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			checks := ops.NewChecks(slog.New(slog.NewTextHandler(&log, nil)), test.checks...)
			checks.Probe(t.Context())
			url := serve(t, ops.Config{Checks: checks})
			answer := get(t, url+"/readyz")
			if answer.status != test.status {
				t.Errorf("status %d, want %d", answer.status, test.status)
			}
			if got := answer.header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type %q", got)
			}
			var got ops.Readiness
			if err := json.Unmarshal([]byte(answer.body), &got); err != nil {
				t.Fatalf("%v: %s", err, answer.body)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if strings.Contains(answer.body, "hunter2") {
				t.Errorf("internal error text: %s", answer.body)
			}
			if told, isDown := strings.Contains(log.String(), "hunter2"), strings.Contains(answer.body, "down"); told != isDown {
				t.Errorf("the log: %s", log.String())
			}
		})
	}
}

func TestReadyzWhileStopping(t *testing.T) {
	stopping := make(chan struct{})
	url := serve(t, ops.Config{Stopping: stopping})
	if answer := get(t, url+"/readyz"); !answer.ok() {
		t.Errorf("before: %d", answer.status)
	}
	close(stopping)
	if answer := get(t, url+"/readyz"); answer.status != http.StatusServiceUnavailable || !strings.Contains(answer.body, `"shutting_down"`) {
		t.Errorf("while stopping: %d %s", answer.status, answer.body)
	}
	if answer := get(t, url+"/livez"); !answer.ok() {
		t.Errorf("/livez: %d", answer.status)
	}
}

func check(name string, required bool, probe func(context.Context) error) ops.Check {
	return ops.Check{Name: name, Required: required, Probe: probe}
}

func states(postgres, redis string) []ops.Dependency {
	return []ops.Dependency{
		{Name: "postgres", Status: postgres, Required: true},
		{Name: "redis", Status: redis},
	}
}

func TestLivez(t *testing.T) {
	dead := ops.Check{Name: "postgres", Required: true, Probe: func(context.Context) error { return errors.New("down") }}
	answer := get(t, serve(t, ops.Config{Checks: ops.NewChecks(slog.New(slog.DiscardHandler), dead)})+"/livez")
	if answer.status != http.StatusOK || answer.body != `{"status":"ok"}`+"\n" {
		t.Errorf("%d %s", answer.status, answer.body)
	}
}

func TestMetrics(t *testing.T) {
	registry := ops.NewRegistry()
	registry.MustRegister(brokenCollector{})
	var log strings.Builder
	url := serve(t, ops.Config{Registry: registry, Log: slog.New(slog.NewTextHandler(&log, nil))})
	answer := get(t, url+"/metrics")
	if !answer.ok() {
		t.Fatalf("%d %s", answer.status, answer.body)
	}
	for _, name := range []string{"passbook_build_info{", "go_goroutines ", "process_start_time_seconds "} {
		if !strings.Contains(answer.body, "\n"+name) {
			t.Errorf("no %s beside a broken collector", name)
		}
	}
	if strings.Contains(answer.body, "hunter2") || !strings.Contains(log.String(), "hunter2") {
		t.Errorf("a collector's error belongs in the log: %s", log.String())
	}
}

func TestPprof(t *testing.T) {
	url := serve(t, ops.Config{})
	if answer := get(t, url+"/debug/pprof/"); !strings.Contains(answer.body, "goroutine") {
		t.Errorf("index: %d %s", answer.status, answer.body)
	}
	if answer := get(t, url+"/debug/pprof/goroutine?debug=1"); !strings.Contains(answer.body, "TestPprof") {
		t.Errorf("goroutines: %d %s", answer.status, answer.body)
	}
	if answer := get(t, url+"/debug/pprof/profile?seconds=1"); !answer.ok() || len(answer.body) == 0 {
		t.Errorf("profile: %d %s", answer.status, answer.body)
	}
}

func TestListenTakenPort(t *testing.T) {
	addr := strings.TrimPrefix(serve(t, ops.Config{}), "http://")
	_, err := ops.Listen(t.Context(), ops.Config{Addr: addr, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v", err)
	}
	for _, word := range []string{addr, "OPS_ADDR", "in use"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %s", err, word)
		}
	}
}

func TestShutdown(t *testing.T) {
	t.Run("FinishesAnswers", func(t *testing.T) {
		server, begun, release := serveSlow(t)
		answered := make(chan answer, 1)
		go func() { answered <- get(t, "http://"+server.Addr()+"/slow") }()
		<-begun
		done := make(chan error, 1)
		go func() { done <- server.Shutdown(t.Context()) }()
		close(release)
		if got := <-answered; got.body != "slow" {
			t.Errorf("got %+v", got)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("CutsOffTheRest", func(t *testing.T) {
		server, begun, release := serveSlow(t)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+server.Addr()+"/slow", nil)
		if err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		go func() {
			response, err := newClient().Do(request)
			if err == nil {
				_ = response.Body.Close()
			}
			failed <- err
		}()
		<-begun
		ended, end := context.WithCancel(t.Context())
		end()
		if err := server.Shutdown(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		close(release) // too late
		if err := <-failed; err == nil {
			t.Error("the request was answered")
		}
	})
	t.Run("WithoutServe", func(t *testing.T) {
		server, err := ops.Listen(t.Context(), ops.Config{Addr: "127.0.0.1:0", Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		again, err := ops.Listen(t.Context(), ops.Config{Addr: server.Addr(), Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatalf("the port is not free: %v", err)
		}
		if err := again.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// serveSlow has a handler /slow that says when it has begun and answers at
// release.
func serveSlow(t *testing.T) (server *ops.Server, begun <-chan struct{}, release chan<- struct{}) {
	t.Helper()
	begins, releases := make(chan struct{}), make(chan struct{})
	server = listen(t, ops.Config{Extra: map[string]http.Handler{"/slow": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begins)
		<-releases
		_, _ = io.WriteString(w, "slow")
	})}})
	return server, begins, releases
}

func serve(t *testing.T, cfg ops.Config) (url string) {
	t.Helper()
	return "http://" + listen(t, cfg).Addr()
}

// listen serves until the test ends.
func listen(t *testing.T, cfg ops.Config) *ops.Server {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	server, err := ops.Listen(t.Context(), cfg)
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
	return server
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) ok() bool { return a.status == http.StatusOK }

func get(t *testing.T, url string, edits ...func(*http.Request)) answer {
	t.Helper()
	return do(t, http.MethodGet, url, edits...)
}

// do may run in a goroutine of the test's: it reports and goes on.
func do(t *testing.T, method, url string, edits ...func(*http.Request)) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Error(err)
		return answer{}
	}
	for _, edit := range edits {
		edit(request)
	}
	response, err := newClient().Do(request)
	if err != nil {
		t.Error(err)
		return answer{}
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// newClient leaves no connection behind.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

func authorization(value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", value) }
}

func answerPath(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Path", r.URL.Path)
}

func wantChallenge(t *testing.T, route string, got answer) {
	t.Helper()
	want := []string{`Bearer realm="passbook"`, `Basic realm="passbook", charset="UTF-8"`}
	if got.status != http.StatusUnauthorized || !reflect.DeepEqual(got.header.Values("WWW-Authenticate"), want) {
		t.Errorf("%s: %d %v", route, got.status, got.header)
	}
}

type brokenCollector struct{}

func (brokenCollector) Describe(chan<- *prometheus.Desc) {}

func (brokenCollector) Collect(metrics chan<- prometheus.Metric) {
	metrics <- prometheus.NewInvalidMetric(prometheus.NewDesc("passbook_broken", "Breaks.", nil, nil), errors.New("hunter2"))
}
