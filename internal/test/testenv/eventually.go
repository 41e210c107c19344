package testenv

import (
	"testing"
	"time"
)

const (
	eventuallyWait = time.Minute          // long enough for a loaded machine under -race
	eventuallyTick = 5 * time.Millisecond // at first
	slowestTick    = 50 * time.Millisecond
)

// Eventually waits until a condition holds that sends no signal. It fails the test when
// the condition does not hold in time. It asks less often the longer it waits: in long
// waits the questions would take a tenth of a processor each.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	eventuallyIn(t, eventuallyWait, what, holds)
}

func eventuallyIn(t testing.TB, wait time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for pause := eventuallyTick; !holds(); pause = min(pause*3/2, slowestTick) {
		tick.Reset(pause)
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v: %s", wait, what)
		}
	}
}
