package e2e_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/passbook/passbook/internal/test/testenv"
)

// receiver is a collector of traces.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex // guards spans
	spans map[string]map[string]*tracepb.Span
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{spans: map[string]map[string]*tracepb.Span{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		var sent collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &sent); err != nil {
			t.Errorf("%s: %v", req.URL.Path, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, resource := range sent.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					id := hex.EncodeToString(span.GetTraceId())
					if r.spans[id] == nil {
						r.spans[id] = map[string]*tracepb.Span{}
					}
					r.spans[id][span.GetName()] = span
				}
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// of returns the spans of a trace by name.
func (r *receiver) of(trace string) map[string]*tracepb.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string]*tracepb.Span{}
	maps.Copy(found, r.spans[trace])
	return found
}

func (r *receiver) traces() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.spans)
}

// logLine is a line of a process's log.
type logLine struct {
	Time, Level, Msg                   string
	RequestID                          string `json:"request_id"`
	JobID                              string `json:"job_id"`
	TraceID                            string `json:"trace_id"`
	Account, Outcome, Dependency, Host string
	AccountID                          int64   `json:"account_id"`
	TookMS                             float64 `json:"took_ms"`
}

// logLines are the lines of a process's log. Each must be JSON with a time, a level and a message.
func (p *process) logLines() (lines []logLine) {
	p.t.Helper()
	for text := range strings.Lines(p.log()) {
		var line logLine
		if err := json.Unmarshal([]byte(text), &line); err != nil || line.Time == "" || line.Level == "" || line.Msg == "" {
			p.t.Errorf("%s wrote %q: %v", p.name, text, err)
		}
		lines = append(lines, line)
	}
	return lines
}

func (p *process) find(matches func(logLine) bool) (found []logLine) {
	p.t.Helper()
	for _, line := range p.logLines() {
		if matches(line) {
			found = append(found, line)
		}
	}
	return found
}

// setLevel sets the level of a process's log.
func (p *process) setLevel(level string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPut, p.operator()+"/log/level", strings.NewReader(level))
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only its status counts
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s", p.name, resp.Status)
	}
}

// One request and its job can be followed through both processes, by the lines of their logs and by the
// spans of one trace. No line holds what only the client may know. An outage has few lines.
func TestObserved(t *testing.T) {
	t.Parallel()
	const secret = "Marker" // begins all that no log may hold
	traces := newReceiver(t)
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	s.reach = func(string, int) []string {
		return []string{
			"LOG_LEVEL=debug", "JWT_KEYS=k1:TWFya2VyTWFya2VyTWFya2VyTWFya2VyTWFya2VyTWFya2Vy",
			"OTEL_EXPORTER_OTLP_ENDPOINT=" + traces.URL, "OTEL_TRACES_SAMPLER_ARG=0", "OTEL_BSP_SCHEDULE_DELAY=50",
		}
	}
	s.start(1, 1)
	api, worker := s.apis[0], s.workers[0]
	c := newSignedUpClient(t, s)
	a := c.open(0)

	t.Run("Trace", func(t *testing.T) {
		const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.api(0)+"/v1/accounts/"+a.Number+"/deposits",
			strings.NewReader(fmt.Sprintf(`{"amount": 1, "description": %q}`, secret)))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Content-Type": "application/json", "Idempotency-Key": secret, "Authorization": "Bearer " + c.token,
			"Traceparent": "00-" + id + "-" + parent + "-01", "X-Request-Id": "followed",
		} {
			req.Header.Set(name, value)
		}
		saw := c.do(req)
		var job jobAnswer
		if err := json.Unmarshal(saw.body, &job); err != nil || saw.status != http.StatusAccepted {
			t.Fatalf("%d %s %v %v", saw.status, saw.body, saw.err, err)
		}
		names := []string{"POST /v1/accounts/:number/deposits", "accept_jobs", "task", "apply", "apply_job"}
		var spans map[string]*tracepb.Span
		testenv.Eventually(t, "the spans of the request", func() bool {
			spans = traces.of(id)
			for _, name := range names {
				if spans[name] == nil {
					return false
				}
			}
			return true
		})
		parents := map[string]string{
			names[0]: parent, "accept_jobs": hex.EncodeToString(spans[names[0]].GetSpanId()), "task": hex.EncodeToString(spans[names[0]].GetSpanId()),
			"apply": hex.EncodeToString(spans["task"].GetSpanId()), "apply_job": hex.EncodeToString(spans["apply"].GetSpanId()),
		}
		for name, want := range parents {
			span := spans[name]
			if got := hex.EncodeToString(span.GetParentSpanId()); got != want || span.GetStartTimeUnixNano() > span.GetEndTimeUnixNano() {
				t.Errorf("%s: the parent is %s, want %s; %v", name, got, want, span)
			}
		}
		if n := traces.traces(); n != 1 {
			t.Errorf("%d traces, want that of the request alone", n)
		}
		requests := api.find(func(l logLine) bool { return l.RequestID == "followed" })
		if len(requests) != 1 || requests[0].Msg != "request" || requests[0].JobID != job.ID || requests[0].Account != a.Number ||
			requests[0].TraceID != id || requests[0].Outcome != "ok" || requests[0].TookMS <= 0 {
			t.Errorf("the request's lines: %+v", requests)
		}
		jobs := worker.find(func(l logLine) bool { return l.JobID == job.ID })
		if len(jobs) != 1 || jobs[0].Msg != "job finished" || jobs[0].RequestID != "followed" || jobs[0].TraceID != id ||
			jobs[0].Outcome != "succeeded" || jobs[0].Account != a.Number || jobs[0].AccountID == 0 || jobs[0].TookMS <= 0 {
			t.Errorf("the job's lines: %+v", jobs)
		}
	})

	t.Run("Level", func(t *testing.T) {
		for _, p := range []*process{api, worker} {
			p.setLevel("info")
		}
		if _, err := c.settle(0, jobRequest{account: a.Number, entry: "withdrawals", amount: 9, key: "too-much"}); err != nil {
			t.Fatal(err)
		}
		s.drained()
		rejected := func() []logLine { return worker.find(func(l logLine) bool { return l.Outcome == "rejected" }) }
		testenv.Eventually(t, "the line of a rejected job", func() bool { return len(rejected()) == 1 })
		job := rejected()[0]
		requests := api.find(func(l logLine) bool { return l.JobID == job.JobID && l.RequestID == job.RequestID })
		if job.RequestID == "" || job.TraceID != "" || len(requests) != 1 {
			t.Errorf("a job that is not traced has the line %+v, and its request has %+v", job, requests)
		}
	})

	t.Run("Outage", func(t *testing.T) {
		for name, store := range map[string]interface {
			Kill() error
			Restart(ctx context.Context) error
		}{"redis": s.redis, "postgres": s.postgres} {
			is := func(message string) func(*process) bool {
				return func(p *process) bool {
					return len(p.find(func(l logLine) bool { return l.Msg == message && l.Dependency == name && l.Host != "" })) == 1
				}
			}
			before := []int{len(api.logLines()), len(worker.logLines())}
			if err := store.Kill(); err != nil {
				t.Fatal(err)
			}
			for n := 0; !is("dependency away")(api) || !is("dependency away")(worker); n++ {
				_, _, _ = c.send(t.Context(), 0, jobRequest{account: a.Number, entry: "deposits", amount: 1, key: fmt.Sprint(name, n)}) // it may fail
				if n > 1000 {
					t.Fatalf("%s is away, and not both say so:\n%s\n%s", name, api.log(), worker.log())
				}
			}
			if err := store.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, "the end of the outage of "+name, func() bool {
				_, _, _ = c.send(t.Context(), 0, jobRequest{account: a.Number, entry: "deposits", amount: 1, key: name})
				return is("dependency back")(api) && is("dependency back")(worker)
			})
			for i, p := range []*process{api, worker} {
				var about []logLine
				for _, line := range p.logLines()[before[i]:] {
					if line.Msg != "request" && line.Msg != "job finished" {
						about = append(about, line)
					}
				}
				const most = 40
				if len(about) > most {
					t.Errorf("%s wrote %d lines about an outage of %s, want %d at most: %+v", p.name, len(about), name, most, about)
				}
			}
		}
		s.drained()
	})

	t.Run("NoSecrets", func(t *testing.T) {
		for _, p := range []*process{api, worker} {
			p.setLevel("debug")
		}
		for _, one := range []struct {
			method, path string
			body         any
		}{
			{http.MethodPost, "/v1/users", map[string]any{"email": "Marker@example.com", "password": secret + " password"}},
			{http.MethodPost, "/v1/sessions", map[string]any{"email": "Marker@example.com", "password": secret + " password"}},
			{http.MethodPost, "/v1/sessions", map[string]any{"email": "Marker@example.com", "password": secret + " wrong password"}},
			{http.MethodPost, "/v1/sessions/refresh", map[string]any{"refresh_token": secret}},
			{http.MethodPut, "/v1/users/me/password", map[string]any{"current_password": secret + " password", "new_password": secret + " new one"}},
			{http.MethodPost, "/v1/accounts/" + a.Number + "/deposits", map[string]any{"amount": 1, "description": secret}},
			{http.MethodPost, "/v1/accounts/" + a.Number + "/deposits", map[string]any{"amount": secret, secret: 1}},
			{http.MethodPost, "/v1/accounts/" + a.Number + "/jobs", map[string]any{"jobs": []any{
				map[string]any{"type": "deposit", "amount": 1, "description": secret, "idempotency_key": secret + "2"},
			}}},
			{http.MethodGet, "/v1/accounts/" + a.Number + "/transactions?cursor=" + secret, nil},
			{http.MethodGet, "/v1/jobs?idempotency_key=" + secret, nil},
			{http.MethodGet, "/v1/" + secret + "?" + secret, nil},
			{secret, "/v1/jobs", nil},
		} {
			if _, _, err := c.request(t.Context(), s.api(0), one.method, one.path, secret+"3", one.body); err != nil {
				t.Errorf("%s %s: %v", one.method, one.path, err)
			}
		}
		anonymous := *c
		anonymous.token = secret
		if status, _, err := anonymous.request(t.Context(), s.api(0), http.MethodGet, "/v1/accounts", "", nil); status != http.StatusUnauthorized || err != nil {
			t.Errorf("a forged token: %d %v", status, err)
		}
		s.drained()
		api.stop()
		worker.stop()
		secrets := []string{strings.ToLower(secret), c.token, c.user["password"], c.user["email"], "TWFya2Vy", "Authorization", "argon2"}
		for _, store := range []string{s.postgres.URL(), s.redis.URL()} {
			if u, err := url.Parse(store); err == nil && u.User != nil {
				if password, has := u.User.Password(); has {
					secrets = append(secrets, password)
				}
			}
		}
		for _, p := range []*process{api, worker} {
			p.logLines()
			log := strings.ToLower(p.log())
			for _, one := range secrets {
				if i := strings.Index(log, strings.ToLower(one)); i >= 0 {
					t.Errorf("%s wrote %.20s…: %s", p.name, one, lineAt(log, i))
				}
			}
		}
	})
}

// lineAt is the line of a text at an offset.
func lineAt(text string, at int) string {
	begin := strings.LastIndex(text[:at], "\n") + 1
	line, _, _ := strings.Cut(text[begin:], "\n")
	return line
}
