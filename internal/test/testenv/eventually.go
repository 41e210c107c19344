package testenv

import (
	"testing"
	"time"
)

const (
	eventuallyWait = 20 * time.Second // long enough for a loaded machine under -race
	eventuallyTick = 5 * time.Millisecond
)

// Eventually waits until a condition holds, for what sends no signal to wait
// on, and fails the test when it never does.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(eventuallyWait)
	defer deadline.Stop()
	tick := time.NewTicker(eventuallyTick)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v: %s", eventuallyWait, what)
		}
	}
}
