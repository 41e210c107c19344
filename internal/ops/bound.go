package ops

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of the lines of one message. Further lines are counted, and one line reports their
// number. Warnings and errors have separate bounds, so that a flood of other lines can't hide them.
const (
	linesPeriod   = time.Second // for lines below slog.LevelWarn
	maxLines      = 100
	warningPeriod = 10 * time.Second // for warnings and errors
	maxWarnings   = 10
	// debugShare multiplies the bounds while the logger's level is slog.LevelDebug.
	debugShare = 10
	// maxMessages is how many messages have bounds of their own. All others share one.
	maxMessages = 1000
)

// bound bounds the lines of one message.
type bound struct {
	message string
	level   slog.Level // of the line that reports how many were left out
	lines   slog.Handler
	most    uint64
	period  time.Duration

	window atomic.Uint64 // the number of the period in the upper half, its lines in the lower
	left   atomic.Int64  // lines that were left out and not reported yet
}

func newBound(level slog.Level, message string, lines slog.Handler) *bound {
	if level >= slog.LevelWarn {
		return &bound{message: message, level: level, lines: lines, most: maxWarnings, period: warningPeriod}
	}
	return &bound{message: message, level: level, lines: lines, most: maxLines, period: linesPeriod}
}

// take returns whether a line may be written now; at is the logger's level. A refusal costs some
// nanoseconds. The first refusal since the last report starts a timer for the next one; a crash before
// that loses the number.
func (b *bound) take(now time.Time, at slog.Level) bool {
	most := b.most
	if at <= slog.LevelDebug {
		most *= debugShare
	}
	const count = 1<<32 - 1
	period := uint64(now.UnixNano() / int64(b.period)) //nolint:gosec // after 1970
	for {
		was := b.window.Load()
		current, n := was>>32, was&count
		// A line may be a period late: another goroutine has begun the next one. If the clock goes
		// back further, a new period begins.
		if current < period || current > period+1 {
			current, n = period, 0
		}
		if n >= most {
			if b.left.Add(1) == 1 {
				time.AfterFunc(b.period, b.report)
			}
			return false
		}
		if b.window.CompareAndSwap(was, current<<32|n+1) {
			return true
		}
	}
}

// report writes how many lines were left out.
func (b *bound) report() {
	left := b.left.Swap(0)
	if left == 0 || !b.lines.Enabled(context.Background(), b.level) {
		return
	}
	line := slog.NewRecord(time.Now(), b.level, "lines left out", 0)
	line.AddAttrs(slog.String("of", b.message), slog.Int64("lines", left))
	_ = b.lines.Handle(context.Background(), line) // an error of the log can't be logged
}

// bounds are the bounds of a logger's messages.
type bounds struct {
	lines slog.Handler // writes how many lines were left out

	byMessage sync.Map // *bound by messageKey
	n         atomic.Int64
	others    [2]atomic.Pointer[bound] // of further messages: lines and warnings
}

type messageKey struct {
	isWarning bool
	message   string
}

// of returns the bound of a message.
func (b *bounds) of(level slog.Level, message string) *bound {
	key := messageKey{level >= slog.LevelWarn, message}
	if known, ok := b.byMessage.Load(key); ok {
		return known.(*bound) // nothing else is stored
	}
	if b.n.Add(1) > maxMessages {
		b.n.Add(-1)
		kind := &b.others[0]
		if key.isWarning {
			kind = &b.others[1]
		}
		kind.CompareAndSwap(nil, newBound(level, "other messages", b.lines))
		return kind.Load()
	}
	known, loaded := b.byMessage.LoadOrStore(key, newBound(level, message, b.lines))
	if loaded {
		b.n.Add(-1)
	}
	return known.(*bound)
}

// Lines writes the lines of a message that comes with each request or job. The caller asks May
// before it makes the attributes, so that a line that is left out costs next to nothing.
type Lines struct {
	log     *slog.Logger // writes without a further bound
	message string

	lines, warnings *bound
}

// NewLines returns the Lines of a message.
func NewLines(log *slog.Logger, message string) *Lines {
	if bounded, ok := log.Handler().(*handler); ok {
		log = slog.New(bounded.lines)
	}
	return &Lines{
		log: log, message: message,
		lines: newBound(slog.LevelInfo, message, log.Handler()), warnings: newBound(slog.LevelError, message, log.Handler()),
	}
}

// May returns whether a line of the level may be written now. If it may, the caller calls Write, else
// the period has one line less.
func (l *Lines) May(ctx context.Context, level slog.Level) bool {
	if !l.log.Enabled(ctx, level) {
		return false
	}
	at := slog.LevelInfo
	if l.IsDebug(ctx) {
		at = slog.LevelDebug
	}
	if level >= slog.LevelWarn {
		return l.warnings.take(time.Now(), at)
	}
	return l.lines.take(time.Now(), at)
}

// IsDebug returns whether the log has the level debug, at which lines have more attributes.
func (l *Lines) IsDebug(ctx context.Context) bool { return l.log.Enabled(ctx, slog.LevelDebug) }

// Write writes a line.
func (l *Lines) Write(ctx context.Context, level slog.Level, attrs ...slog.Attr) {
	l.log.LogAttrs(ctx, level, l.message, attrs...)
}
