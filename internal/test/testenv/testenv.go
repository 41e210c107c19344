// Package testenv gives tests a real Postgres and a real Redis. What a test gets is its
// own, new, and removed afterwards. No server is left running, however the test process
// ends.
package testenv

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// stopWait bounds what is done after a test, when its own context has ended.
const stopWait = time.Minute

// Main runs a package's tests, for its TestMain. Afterwards it stops what they started,
// fails if a goroutine of theirs still runs, and exits. If the process panics or is
// killed, the supervisors end its servers.
func Main(m *testing.M, opts ...goleak.Option) {
	code := m.Run()
	for _, check := range append(atEnd, shared.stop, func() error { return leaks(opts) }) {
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, "testenv:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// leaks returns an error that names the goroutines that do not end within leakWait. A client of a Redis
// that is away dials in a goroutine that ends up to a second after its Close.
func leaks(opts []goleak.Option) error {
	const leakWait = 5 * time.Second
	for deadline := time.Now().Add(leakWait); ; {
		if err := goleak.Find(opts...); err == nil || time.Now().After(deadline) { // Find itself waits
			return err
		}
	}
}

// atEnd are the functions that AtEnd was given. Tests call AtEnd before they run in
// parallel, or under a lock of their own.
var atEnd []func() error

// AtEnd has Main call clean after the last test, for what several tests share.
func AtEnd(clean func() error) {
	atEnd = append(atEnd, clean)
}

// afterTest is a context for a test's clean-up, when t's own context has ended.
func afterTest(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.WithoutCancel(t.Context()), stopWait)
}
