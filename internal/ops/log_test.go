package ops_test

import (
	"encoding/json"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/ops"
)

func TestNewLogger(t *testing.T) {
	const timeForm = `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`
	seoul := time.Date(2026, 1, 2, 12, 4, 5, 6789, time.FixedZone("KST", 9*60*60))
	t.Run("JSON", func(t *testing.T) {
		var out strings.Builder
		log := ops.NewLogger(&out, slog.LevelInfo, true)
		log.Debug("unheard")
		log.WithGroup("job").Info("applied", "at", seoul, "seq", 1)
		var got struct {
			Time, Level, Msg string
			Job              struct {
				At  string
				Seq int
			}
		}
		if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		if !regexp.MustCompile(timeForm).MatchString(got.Time) || got.Level != "INFO" || got.Msg != "applied" || got.Job.Seq != 1 {
			t.Errorf("got %s", out.String())
		}
		if got.Job.At != "2026-01-02T03:04:05.000006Z" {
			t.Errorf("at %s", got.Job.At)
		}
	})
	t.Run("Text", func(t *testing.T) {
		var out strings.Builder
		ops.NewLogger(&out, slog.LevelDebug, false).Debug("heard")
		if !regexp.MustCompile(`^time=\S{26}Z level=DEBUG msg=heard\n$`).MatchString(out.String()) {
			t.Errorf("got %s", out.String())
		}
	})
}
