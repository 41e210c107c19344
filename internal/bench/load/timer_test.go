package load

import (
	"testing"
	"time"
)

// A timer fires when it should, not before and not again. Closing it ends a wait.
func TestTimer(t *testing.T) {
	t.Parallel()
	timer, err := newTimer()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{5 * time.Millisecond, -time.Second, 0, time.Millisecond} {
		then := time.Now().Add(after)
		if err := timer.wait(then); err != nil {
			t.Fatal(err)
		}
		if early := time.Until(then); early > 0 {
			t.Errorf("set to %v it fired %v early", after, early)
		}
	}
	waited := make(chan error)
	go func() { waited <- timer.wait(time.Now().Add(time.Hour)) }()
	time.AfterFunc(10*time.Millisecond, func() { _ = timer.Close() }) // it may wait by then, or not
	if err := <-waited; err == nil {
		t.Error("closed during a wait, it fired")
	}
	if err := timer.wait(time.Now().Add(time.Hour)); err == nil {
		t.Error("closed before a wait, it fired")
	}
}
