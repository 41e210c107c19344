package ops

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
)

// maxLevel bounds the body of a request for a level, in bytes.
const maxLevel = 64

// levels are the levels of LOG_LEVEL.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// levelRoutes adds GET and PUT /log/level for a logger of NewLogger. A level that was set lasts until
// the process ends.
func levelRoutes(mux *http.ServeMux, log *slog.Logger) {
	if log == nil {
		return
	}
	h, ok := log.Handler().(*handler)
	if !ok {
		return
	}
	mux.HandleFunc("GET /log/level", func(w http.ResponseWriter, _ *http.Request) { answerLevel(w, h.level.Level()) })
	mux.HandleFunc("PUT /log/level", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxLevel))
		level, known := levels[strings.TrimSpace(string(body))]
		if err != nil || !known {
			http.Error(w, "the body is debug, info, warn or error", http.StatusBadRequest)
			return
		}
		was := h.level.Level()
		h.level.Set(level)
		log.Log(r.Context(), max(was, level, slog.LevelWarn), "log level changed", "from", name(was), "to", name(level)) // whatever the level
		answerLevel(w, level)
	})
}

func answerLevel(w http.ResponseWriter, level slog.Level) {
	answerJSON(w, http.StatusOK, map[string]string{"level": name(level)})
}

// name is the level as LOG_LEVEL has it.
func name(level slog.Level) string {
	for name, known := range levels {
		if known == level {
			return name
		}
	}
	return fmt.Sprint(level)
}
