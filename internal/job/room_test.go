package job

import (
	"testing"
	"time"
)

func TestRooms(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	r := rooms{now: func() time.Time { return now }, known: map[string]room{}}
	want := func(when, account string, want int) {
		t.Helper()
		const mustCount = -1
		got := mustCount
		if left := r.left(account); left != nil {
			got = *left
		}
		if got != want {
			t.Errorf("%s: %d left, want %d (-1: count)", when, got, want)
		}
	}
	want("never counted", "long", -1)
	r.counted("long", 40_000, 10)
	want("counted", "long", 10)
	want("another account", "short", -1)
	r.take("long")
	r.take("short")
	want("one taken", "long", 9)
	r.counted("long", 40_000, 10)
	want("what was known is not counted again", "long", 9)
	now = now.Add(799 * time.Millisecond)
	want("before the pause is over", "long", 9)
	now = now.Add(time.Millisecond)
	want("when it is over", "long", -1)
	r.counted("long", 1_000_000, 0)
	now = now.Add(maxCountPause)
	want("after the longest pause", "long", -1)
	r.counted("short", 10, 10)
	want("a short queue is counted every time", "short", -1)
	for i := range maxKnown + 5 {
		r.counted(time.Unix(int64(i), 0).String(), 40_000, 1)
	}
	if len(r.known) > maxKnown {
		t.Errorf("%d accounts are remembered, want at most %d", len(r.known), maxKnown)
	}
}
