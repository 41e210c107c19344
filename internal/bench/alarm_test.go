package main

import (
	"testing"
	"time"
)

// An alarm goes off when it should, not before and not again, and lets go who waits when it is closed.
func TestAlarm(t *testing.T) {
	t.Parallel()
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{5 * time.Millisecond, -time.Second, 0, time.Millisecond} {
		then := time.Now().Add(after)
		if err := a.wait(then); err != nil {
			t.Fatal(err)
		}
		if early := time.Until(then); early > 0 {
			t.Errorf("set to %v it went off %v early", after, early)
		}
	}
	waited := make(chan error)
	go func() { waited <- a.wait(time.Now().Add(time.Hour)) }()
	time.AfterFunc(10*time.Millisecond, func() { _ = a.Close() }) // it may wait by then, or not
	if err := <-waited; err == nil {
		t.Error("closed on the way, it went off")
	}
	if err := a.wait(time.Now().Add(time.Hour)); err == nil {
		t.Error("closed before, it went off")
	}
}
