package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The dashboard of a worker changes queues with OPS_TOKEN alone, and only where OPS_QUEUES_WRITE allows
// it. A pause stands in the log, in the metrics and in the body of /readyz, and the worker stays ready.
func TestDashboardOfAWorker(t *testing.T) {
	t.Parallel()
	const token, readToken = "0123456789abcdef", "fedcba9876543210"
	const pause = "/queues/api/queues/passbook:tx:1:pause"
	database, redis := testenv.Postgres(t), testenv.Redis(t)
	for write, want := range map[string]int{"": http.StatusMethodNotAllowed, "true": http.StatusNoContent} {
		w := startWorker(t, map[string]string{
			"DATABASE_URL": database, "REDIS_URL": redis, "QUEUE_PARTITIONS": "2", "OPS_ADDR": "127.0.0.1:0",
			"OPS_TOKEN": token, "OPS_READ_TOKEN": readToken, "OPS_QUEUES_WRITE": write,
		})
		testenv.Eventually(t, "both partitions to be listed", func() bool {
			_, queues := w.ask(http.MethodGet, "/queues/api/queues", readToken)
			return strings.Contains(queues, `"queue":"passbook:tx:0"`) && strings.Contains(queues, `"queue":"passbook:tx:1"`)
		})
		testenv.Eventually(t, "the worker to be ready, without a pause", func() bool {
			status, ready := w.ask(http.MethodGet, "/readyz", "")
			return status == http.StatusOK && strings.Contains(ready, `{"name":"unpaused","status":"up"`)
		})
		if status, _ := w.ask(http.MethodPost, pause, readToken); status != http.StatusForbidden {
			t.Errorf("OPS_READ_TOKEN pauses a queue: %d", status)
		}
		if status, body := w.ask(http.MethodPost, pause, token); status != want {
			t.Errorf("OPS_QUEUES_WRITE=%s: %d %s, want %d", write, status, body, want)
		}
		if write == "true" {
			w.wantPaused()
		}
		w.stop()
	}
}

func (w *runningWorker) wantPaused() {
	w.t.Helper()
	testenv.Eventually(w.t, "the pause to be said", func() bool {
		status, ready := w.ask(http.MethodGet, "/readyz", "")
		return status == http.StatusOK && strings.Contains(ready, `{"name":"unpaused","status":"down"`) && strings.Contains(w.log(), "partitions are paused")
	})
	testenv.Eventually(w.t, "the pause to be counted", func() bool {
		_, metrics := w.ask(http.MethodGet, "/metrics", "fedcba9876543210")
		return strings.Contains(metrics, "\npassbook_paused_partitions 1\n")
	})
	if !strings.Contains(w.log(), "action on the dashboard") {
		w.t.Errorf("the action is not logged:\n%s", w.log())
	}
}

// runningWorker is a worker in this process.
type runningWorker struct {
	t    *testing.T
	url  string // of the operator's port
	stop func()

	mu   sync.Mutex // guards said
	said strings.Builder
}

// startWorker runs a worker until stop, or until the test ends.
func startWorker(t *testing.T, env map[string]string) *runningWorker {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &runningWorker{t: t}
	done := make(chan error, 1)
	go func() { done <- run(ctx, nil, func(name string) string { return env[name] }, w, io.Discard) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
	testenv.Eventually(t, "the worker to be ready", func() bool {
		for line := range strings.SplitSeq(w.log(), "\n") {
			var ready struct {
				Msg     string `json:"msg"`
				OpsAddr string `json:"ops_addr"`
			}
			if json.Unmarshal([]byte(line), &ready) == nil && ready.Msg == "worker ready" {
				w.url = "http://" + ready.OpsAddr
			}
		}
		return w.url != ""
	})
	return w
}

// Write keeps what the worker logs.
func (w *runningWorker) Write(text []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.Write(text)
}

func (w *runningWorker) log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.String()
}

func (w *runningWorker) ask(method, path, token string) (status int, body string) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	request.Close = true // goleak would see the idle connection
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	read, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, string(read)
}
