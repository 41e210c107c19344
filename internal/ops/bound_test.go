package ops_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbook/passbook/internal/ops"
)

// A message that comes too often is written up to a bound, and one line reports how many were left out.
func TestLinesAreBounded(t *testing.T) {
	for name, test := range map[string]struct {
		level  slog.Level // of the logger
		log    func(*slog.Logger)
		lines  int
		period time.Duration
	}{
		"Info":  {slog.LevelInfo, func(log *slog.Logger) { log.Info("again") }, 100, time.Second},
		"Warn":  {slog.LevelInfo, func(log *slog.Logger) { log.Warn("again") }, 10, 10 * time.Second},
		"Error": {slog.LevelInfo, func(log *slog.Logger) { log.With("a", 1).WithGroup("g").Error("again") }, 10, 10 * time.Second},
		"Debug": {slog.LevelDebug, func(log *slog.Logger) { log.Info("again") }, 1000, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const over = 7
				out := &output{}
				log := ops.NewLogger(out, test.level, true)
				for range 2 { // a new period begins with a whole bound
					for range test.lines + over {
						test.log(log)
					}
					time.Sleep(test.period)
					synctest.Wait()
				}
				log.Info("another message")
				if n := out.count(`"msg":"again"`); n != 2*test.lines {
					t.Errorf("%d lines, want %d", n, 2*test.lines)
				}
				if n := out.count(`"msg":"lines left out","of":"again","lines":7`); n != 2 {
					t.Errorf("%d lines report lines left out, want 2:\n%s", n, out.last())
				}
				if out.count("another message") != 1 {
					t.Error("another message is lost")
				}
			})
		})
	}
}

// Many messages, as of a library that writes numbers into them, share a bound.
func TestMessagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{}
		log := ops.NewLogger(out, slog.LevelInfo, true)
		for n := range 3000 {
			log.Info("message " + strings.Repeat("x", n))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := out.count(`"msg":"message `); n != 1100 {
			t.Errorf("%d lines, want those of 1000 messages and 100 others", n)
		}
		if out.count(`"of":"other messages","lines":1900`) != 1 {
			t.Error("no line reports the lines of other messages that were left out")
		}
	})
}

// The lines of requests and jobs have a bound, and errors among them another.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{}
		lines := ops.NewLines(ops.NewLogger(out, slog.LevelInfo, true), "request")
		for range 500 {
			for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelError} {
				if lines.May(t.Context(), level) {
					lines.Write(t.Context(), level, slog.Int("status", 200))
				}
			}
		}
		for level, want := range map[string]int{"DEBUG": 0, "INFO": 100, "ERROR": 10} {
			if n := out.count(`"level":"` + level + `","msg":"request","status":200`); n != want {
				t.Errorf("%s: %d lines, want %d", level, n, want)
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if out.count(`"lines":400`) != 1 || out.count(`"lines":490`) != 1 {
			t.Errorf("no line reports the lines left out:\n%s", out.last())
		}
	})
}

// A line that is not written makes no garbage.
func TestLinesLeftOutCostNothing(t *testing.T) {
	lines := ops.NewLines(ops.NewLogger(&output{}, slog.LevelInfo, true), "request")
	for range 100 {
		lines.May(t.Context(), slog.LevelInfo)
	}
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() { lines.May(ctx, slog.LevelInfo) }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLinesLeftOut(b *testing.B) {
	lines := ops.NewLines(ops.NewLogger(&output{}, slog.LevelInfo, true), "request")
	for b.Loop() {
		if lines.May(b.Context(), slog.LevelInfo) {
			lines.Write(b.Context(), slog.LevelInfo, slog.Int("status", 200))
		}
	}
}

// output is what a logger wrote.
type output struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (o *output) Write(line []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(line)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) count(text string) int { return strings.Count(o.String(), text) }

// last is the end of the output.
func (o *output) last() string {
	text := o.String()
	return text[max(0, len(text)-500):]
}
