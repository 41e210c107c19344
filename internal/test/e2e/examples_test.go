package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The examples of docs/clients.md, in curl and Go, reach their ends through a network that loses
// answers, and each makes its jobs once. make test-clients does the same in TypeScript.
func TestExamplesForClients(t *testing.T) {
	t.Parallel()
	x := newExamples(t)
	t.Run("curl", func(t *testing.T) {
		t.Parallel()
		x.run(t, "invoice-1001", 3, exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", x.block("sh")))
	})
	t.Run("Go", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "main.go")
		if err := os.WriteFile(file, []byte(x.block("go")), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "gofmt", "-l", file).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("it is not as gofmt writes it: %s %v", out, err)
		}
		x.run(t, "invoice-1002", 1, exec.CommandContext(t.Context(), "go", "run", file))
	})
}

// examples is a system with the account of the examples, behind a network that loses answers.
type examples struct {
	t     *testing.T
	s     *system
	c     *client
	front string
}

func newExamples(t *testing.T) *examples {
	t.Helper()
	x := &examples{t: t, s: newSystem(t, plain, 1, 1)}
	x.c = newAnonymousClient(t, x.s)
	x.c.user = map[string]string{"email": "ann@example.com", "password": "correct horse battery"}
	x.c.must(http.StatusCreated, http.MethodPost, "/v1/users", x.c.user, nil)
	x.c.logIn()
	x.c.must(http.StatusCreated, http.MethodPost, "/v1/accounts", map[string]any{"number": "ANN-0001", "initial_deposit": 10000}, nil)
	x.front = loseAnswers(t, x.s.api(0))
	return x
}

// block returns the document's only block of code in a language, for the network's address.
func (x *examples) block(language string) string {
	x.t.Helper()
	text := x.read("docs", "clients.md")
	if n := strings.Count(text, "```"+language+"\n"); n != 1 {
		x.t.Fatalf("%d blocks of %s in docs/clients.md, want one", n, language)
	}
	_, block, _ := strings.Cut(text, "```"+language+"\n")
	block, _, _ = strings.Cut(block, "```")
	return x.throughTheNetwork(block)
}

func (x *examples) read(path ...string) string {
	x.t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, filepath.Join(path...)))
	if err != nil {
		x.t.Fatal(err)
	}
	return string(text)
}

// throughTheNetwork is an example with the network's address in place of the API's.
func (x *examples) throughTheNetwork(example string) string {
	x.t.Helper()
	const address = "http://127.0.0.1:8080"
	if !strings.Contains(example, address) {
		x.t.Fatalf("the example does not name %s", address)
	}
	return strings.ReplaceAll(example, address, x.front)
}

// run runs an example, and checks its jobs, whose keys begin with prefix.
func (x *examples) run(t *testing.T, prefix string, jobs int, example *exec.Cmd) {
	t.Helper()
	out, err := example.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "succeeded") {
		t.Error("it printed no job that has succeeded")
	}
	var made int
	const sql = `SELECT count(*) FROM job_states WHERE idempotency_key LIKE $1 || '%' AND status = 'succeeded'`
	if err := x.s.pool.QueryRow(t.Context(), sql, prefix).Scan(&made); err != nil || made != jobs {
		t.Errorf("%d jobs have succeeded, %v; want %d", made, err, jobs)
	}
}

// loseAnswers is a network to the API. Of each POST that makes jobs it loses the first answer, once
// the API has given it, and refuses the second try with a 503.
func loseAnswers(t *testing.T, api string) string {
	t.Helper()
	target, err := url.Parse(api)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	var mu sync.Mutex // guards tries
	tries := map[string]int{}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if filepath.Base(r.URL.Path) == "events" {
			w = &cutOff{w, r.Header.Get("Last-Event-ID") == "0"}
		}
		if r.Method != http.MethodPost || !slices.Contains([]string{"deposits", "withdrawals", "jobs"}, filepath.Base(r.URL.Path)) {
			proxy.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		request := r.URL.Path + r.Header.Get("Idempotency-Key") + string(body)
		tries[request]++
		try := tries[request]
		mu.Unlock()
		switch try {
		case 1:
			proxy.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case 2:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	return front.URL
}

// cutOff breaks the connection within the second thing that is written, where cuts is set.
type cutOff struct {
	http.ResponseWriter
	cuts bool
}

func (c *cutOff) Write(text []byte) (int, error) {
	const begin = 250 // bytes: the first events as a whole, and a part of one
	if !c.cuts || len(text) < begin {
		return c.ResponseWriter.Write(text)
	}
	_, _ = c.ResponseWriter.Write(text[:begin])
	c.Flush()
	panic(http.ErrAbortHandler)
}

// Flush sends what was written.
func (c *cutOff) Flush() { c.ResponseWriter.(http.Flusher).Flush() }
