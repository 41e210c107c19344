package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// responseCheck sees every answer of a load. It keeps the first answer that is wrong:
// anything but a success, or a 503 that says when to try again.
type responseCheck struct {
	mu       sync.Mutex // guards the rest
	accepted int        // 202s
	refused  int        // 503s
	slowest  time.Duration
	wrong    string // the first wrong answer
}

func (w *responseCheck) see(saw seen) {
	var problem struct {
		Code string `json:"code"`
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slowest = max(w.slowest, saw.took)
	switch {
	case saw.err == nil && saw.status == http.StatusAccepted:
		w.accepted++
	case saw.err == nil && saw.status/100 == 2:
	case saw.err == nil && saw.status == http.StatusServiceUnavailable && saw.header.Get("Retry-After") != "" &&
		json.Unmarshal(saw.body, &problem) == nil && problem.Code == "unavailable":
		w.refused++
	case w.wrong == "":
		w.wrong = fmt.Sprintf("%s: %d %s %v", saw.method, saw.status, saw.body, saw.err)
	}
}

func (w *responseCheck) count() (accepted, refused int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.accepted, w.refused
}

// awaitAccepted waits for n more.
func (w *responseCheck) awaitAccepted(t testing.TB, n int) {
	t.Helper()
	from, _ := w.count()
	w.await(t, fmt.Sprintf("%d accepted jobs", n), func() bool {
		now, _ := w.count()
		return now >= from+n
	})
}

func (w *responseCheck) awaitRefused(t testing.TB, n int) {
	t.Helper()
	_, from := w.count()
	w.await(t, fmt.Sprintf("%d refusals", n), func() bool {
		_, now := w.count()
		return now >= from+n
	})
}

// await fails the test at the first wrong answer.
func (w *responseCheck) await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	testenv.Eventually(t, what, func() bool { return w.fault() != "" || holds() })
	if fault := w.fault(); fault != "" {
		t.Fatalf("a client got %s", fault)
	}
}

func (w *responseCheck) fault() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrong
}

// check fails the test for a wrong answer, and for an answer that took longer than bound.
func (w *responseCheck) check(t testing.TB, bound time.Duration) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrong != "" {
		t.Errorf("a client got %s", w.wrong)
	}
	if w.slowest > bound {
		t.Errorf("an answer took %v, want %v at most", w.slowest, bound)
	}
	t.Logf("%d accepted, %d times 503, the slowest answer after %v", w.accepted, w.refused, w.slowest)
}

// load is sequential clients, with an account each, that send requests until stop.
type load struct {
	c                *client
	sequentialClient []*sequentialClient
	stopped          atomic.Bool
	group            errgroup.Group
}

// startLoad starts clients that pause between two requests, which leaves the machine to the tests that
// run at the same time.
func startLoad(c *client, accounts int) *load {
	c.t.Helper()
	return startLoadWith(c, accounts, func() bool { return c.pause(c.t.Context()) })
}

// startFullLoad is the same without pauses.
func startFullLoad(c *client, accounts int) *load {
	c.t.Helper()
	return startLoadWith(c, accounts, func() bool { return true })
}

func startLoadWith(c *client, accounts int, pause func() bool) *load {
	c.t.Helper()
	const initial = 500
	l := &load{c: c}
	for i := range accounts {
		l.sequentialClient = append(l.sequentialClient, newSequentialClient(c, i, c.open(initial).Number, initial))
	}
	for _, sequentialClient := range l.sequentialClient {
		l.group.Go(func() error {
			for pause() && !l.stopped.Load() {
				if err := sequentialClient.next(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	c.t.Cleanup(func() { l.stopped.Store(true); _ = l.group.Wait() }) // stop has reported an error
	return l
}

// stop ends the load and compares every outcome with the model.
func (l *load) stop() {
	l.c.t.Helper()
	l.stopped.Store(true)
	if err := l.group.Wait(); err != nil {
		l.c.t.Fatal(err)
	}
	l.c.system.drained()
	for _, sequentialClient := range l.sequentialClient {
		compare(l.c, sequentialClient.requests)
	}
	l.c.system.verify()
}
