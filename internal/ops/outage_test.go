package ops_test

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbook/passbook/internal/ops"
)

var errAway = errors.New("connection refused")

// An outage writes a line when it begins, one every 30 s and one when it is over, however many
// calls fail.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{}
		outage := ops.NewOutage(ops.NewLogger(out, slog.LevelInfo, true), "redis", "the sweep applies jobs")
		outage.Note("redis:6379", nil)
		for range 70 * 100 { // 70 s
			outage.Note("redis:6379", errAway)
			time.Sleep(10 * time.Millisecond)
		}
		if !outage.IsFailing() {
			t.Error("no call fails")
		}
		for text, want := range map[string]int{
			`"msg":"dependency away","dependency":"redis","host":"redis:6379","meanwhile":"the sweep applies jobs","error":"connection refused"`: 1,
			`"msg":"dependency still away"`: 2,
			`"msg":"dependency back"`:       0,
		} {
			if n := out.count(text); n != want {
				t.Errorf("%d times %s, want %d:\n%s", n, text, want, out)
			}
		}
		for range 500 { // 5 s: reads succeed, and at first some calls fail
			outage.Note("redis:6379", nil)
			time.Sleep(10 * time.Millisecond)
		}
		if out.count(`"msg":"dependency back","dependency":"redis","host":"redis:6379","away_seconds":69.99,"failures":7000`) != 1 || outage.IsFailing() {
			t.Errorf("it is not over:\n%s", out)
		}
	})
}

// A call that fails by itself is no outage. Calls that fail now and then, while others
// succeed, are one.
func TestOutagePartial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{}
		outage := ops.NewOutage(ops.NewLogger(out, slog.LevelInfo, true), "redis", "")
		for range 3 {
			outage.Note("redis:6379", errAway)
			outage.Note("redis:6379", nil)
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		if out.String() != "" || outage.IsFailing() {
			t.Errorf("failures by themselves: %s", out)
		}
		for range 5 {
			outage.Note("redis:6379", errAway)
			for range 20 {
				outage.Note("redis:6379", nil)
				time.Sleep(100 * time.Millisecond)
			}
		}
		if out.count("dependency away") != 1 || out.count("dependency back") != 0 {
			t.Errorf("it comes and goes: %s", out)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		outage.Note("redis:6379", nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if out.count("dependency back") != 1 {
			t.Errorf("it is not over: %s", out)
		}
	})
}

// A nil Outage does nothing.
func TestNoOutage(t *testing.T) {
	var outage *ops.Outage
	outage.Note("redis:6379", errAway)
	if outage.IsFailing() {
		t.Error("it fails")
	}
}
