package ops

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A wall clock that steps back begins a new period. Where it steps back by less than a period, the
// period goes on: another goroutine may only have read the clock a moment earlier.
func TestTakeWhileTheClockGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBound(slog.LevelInfo, "again", slog.DiscardHandler)
		now := time.Now()
		for _, step := range []struct {
			at    time.Time
			lines int
		}{
			{now, maxLines},
			{now.Add(-linesPeriod), 0},
			{now.Add(-time.Hour), maxLines},
			{now, maxLines},
		} {
			lines := 0
			for range 2 * maxLines {
				if b.take(step.at, slog.LevelInfo) {
					lines++
				}
			}
			if lines != step.lines {
				t.Errorf("%d lines at %v, want %d", lines, step.at.Sub(now), step.lines)
			}
		}
	})
}

// Lines that are left out are reported, also where fewer lines than were written are allowed from now on.
func TestTakeAtAnotherLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBound(slog.LevelInfo, "again", slog.DiscardHandler)
		for range 2 * maxLines {
			if !b.take(time.Now(), slog.LevelDebug) {
				t.Fatal("a line is left out at the level debug")
			}
		}
		for range 3 {
			if b.take(time.Now(), slog.LevelInfo) {
				t.Fatal("a line beyond the bound is written")
			}
		}
		if n := b.left.Load(); n != 3 {
			t.Errorf("%d lines are left out, want 3", n)
		}
		<-time.After(linesPeriod)
		synctest.Wait()
		if n := b.left.Load(); n != 0 {
			t.Errorf("%d lines are not reported", n)
		}
	})
}
