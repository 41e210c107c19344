// Package testenv gives tests a real Postgres and a real Redis. Its promise:
// what a test gets is its own, fresh and gone afterwards, and nothing is left
// running, whatever ends the test process.
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

// Main runs a package's tests, for its TestMain. Afterwards it stops what they
// started, fails when a goroutine of theirs still runs, and exits. A process
// that panics or is killed doesn't get there: its servers go by their guards.
func Main(m *testing.M, opts ...goleak.Option) {
	code := m.Run()
	for _, check := range append(atEnd, shared.stop, func() error { return goleak.Find(opts...) }) {
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, "testenv:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// atEnd is what AtEnd was given; tests of a process register before they run
// side by side, or under a lock of their own.
var atEnd []func() error

// AtEnd has Main call clean after the last test: for what several tests share.
func AtEnd(clean func() error) {
	atEnd = append(atEnd, clean)
}

// afterTest is a context for a test's clean-up: t's own has ended by then.
func afterTest(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.WithoutCancel(t.Context()), stopWait)
}
