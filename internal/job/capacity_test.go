package job

import (
	"testing"
	"time"
)

func TestCapacities(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	c := newCapacities(func() time.Time { return now })
	want := func(when, account string, want int) {
		t.Helper()
		const mustCount = -1
		got := mustCount
		if jobs := c.known(account); jobs != nil {
			got = *jobs
		}
		if got != want {
			t.Errorf("%s: %d more, want %d (-1: count)", when, got, want)
		}
	}
	want("never counted", "long", -1)
	c.counted("long", 40_000, 10)
	want("counted", "long", 10)
	want("another account", "short", -1)
	c.use("long", 1)
	c.use("short", 1)
	want("one accepted", "long", 9)
	c.counted("long", 40_000, 10)
	want("what was known is not counted again", "long", 9)
	now = now.Add(799 * time.Millisecond)
	want("before the pause has passed", "long", 9)
	now = now.Add(time.Millisecond)
	want("when it has passed", "long", -1)
	c.counted("long", 1_000_000, 0)
	now = now.Add(maxCountPause)
	want("after the longest pause", "long", -1)
	c.counted("short", 10, 10)
	want("a short queue is counted every time", "short", -1)
	for i := range maxCapacities + 5 {
		c.counted(time.Unix(int64(i), 0).String(), 40_000, 1)
	}
	if n := c.accounts.Len(); n != maxCapacities {
		t.Errorf("%d accounts are remembered, want %d", n, maxCapacities)
	}
}
