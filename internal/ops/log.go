package ops

import (
	"context"
	"io"
	"log/slog"
)

// timeForm is RFC 3339 in UTC with microseconds, as everywhere in Passbook.
const timeForm = "2006-01-02T15:04:05.000000Z"

// NewLogger returns a logger that writes one line an entry, as JSON or as key=value text. It bounds
// the lines of each message. The operator's port can change its level.
func NewLogger(w io.Writer, level slog.Level, json bool) *slog.Logger {
	h := &handler{level: new(slog.LevelVar), bounds: new(bounds)}
	h.level.Set(level)
	opts := &slog.HandlerOptions{Level: h.level, ReplaceAttr: formatTimes}
	h.lines = slog.NewTextHandler(w, opts)
	if json {
		h.lines = slog.NewJSONHandler(w, opts)
	}
	h.bounds.lines = h.lines
	return slog.New(h)
}

func formatTimes(_ []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() == slog.KindTime {
		attr.Value = slog.StringValue(attr.Value.Time().UTC().Format(timeForm))
	}
	return attr
}

// handler is the slog.Handler of NewLogger.
type handler struct {
	lines  slog.Handler // writes the lines within the bounds
	level  *slog.LevelVar
	bounds *bounds
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.lines.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, line slog.Record) error {
	if !h.bounds.of(line.Level, line.Message).take(line.Time, h.level.Level()) {
		return nil
	}
	return h.lines.Handle(ctx, line)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{lines: h.lines.WithAttrs(attrs), level: h.level, bounds: h.bounds}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{lines: h.lines.WithGroup(name), level: h.level, bounds: h.bounds}
}
