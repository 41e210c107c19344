package ops

import (
	"io"
	"log/slog"
)

// timeForm is RFC 3339 in UTC with microseconds, as everywhere in Passbook.
const timeForm = "2006-01-02T15:04:05.000000Z"

// NewLogger returns a logger that writes one line an entry, as JSON or as key=value text.
func NewLogger(w io.Writer, level slog.Level, json bool) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: formatTimes}
	if json {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func formatTimes(_ []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() == slog.KindTime {
		attr.Value = slog.StringValue(attr.Value.Time().UTC().Format(timeForm))
	}
	return attr
}
