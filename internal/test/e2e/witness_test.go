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

// witness sees every answer and keeps what no client may see: anything but a
// success, or a 503 that says when to try again.
type witness struct {
	mu       sync.Mutex // guards the rest
	accepted int        // 202s
	refused  int        // 503s
	slowest  time.Duration
	unseemly string // the first answer that no client may see
}

func (w *witness) see(saw seen) {
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
	case w.unseemly == "":
		w.unseemly = fmt.Sprintf("%s: %d %s %v", saw.method, saw.status, saw.body, saw.err)
	}
}

func (w *witness) count() (accepted, refused int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.accepted, w.refused
}

// awaitAccepted waits for n more.
func (w *witness) awaitAccepted(t testing.TB, n int) {
	t.Helper()
	from, _ := w.count()
	w.await(t, fmt.Sprintf("%d accepted jobs", n), func() bool {
		now, _ := w.count()
		return now >= from+n
	})
}

func (w *witness) awaitRefused(t testing.TB, n int) {
	t.Helper()
	_, from := w.count()
	w.await(t, fmt.Sprintf("%d refusals", n), func() bool {
		_, now := w.count()
		return now >= from+n
	})
}

// await gives up at the first answer that no client may see.
func (w *witness) await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	testenv.Eventually(t, what, func() bool { return w.fault() != "" || holds() })
	if fault := w.fault(); fault != "" {
		t.Fatalf("no client may see %s", fault)
	}
}

func (w *witness) fault() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unseemly
}

// check fails the test for what it saw, and for an answer that took longer than
// bound.
func (w *witness) check(t testing.TB, bound time.Duration) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unseemly != "" {
		t.Errorf("no client may see %s", w.unseemly)
	}
	if w.slowest > bound {
		t.Errorf("an answer took %v, want %v at most", w.slowest, bound)
	}
	t.Logf("%d accepted, %d times 503, the slowest answer after %v", w.accepted, w.refused, w.slowest)
}

// load is sequential clients at work, an account each, until they are stopped.
type load struct {
	c       *client
	turns   []*turns
	stopped atomic.Bool
	group   errgroup.Group
}

func startLoad(c *client, accounts int) *load {
	c.t.Helper()
	const initial = 500
	l := &load{c: c}
	for i := range accounts {
		l.turns = append(l.turns, takeTurns(c, i, c.open(initial).Number, initial))
	}
	for _, turns := range l.turns {
		l.group.Go(func() error {
			for !l.stopped.Load() {
				if err := turns.next(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	c.t.Cleanup(func() { l.stopped.Store(true); _ = l.group.Wait() }) // else stop has said it
	return l
}

// stop ends the load and holds all that came of it against the model.
func (l *load) stop() {
	l.c.t.Helper()
	l.stopped.Store(true)
	if err := l.group.Wait(); err != nil {
		l.c.t.Fatal(err)
	}
	l.c.system.drained()
	for _, turns := range l.turns {
		compare(l.c, turns.orders)
	}
	l.c.system.verify()
}
