package ops_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ops"
)

// The operator reads and changes the level while the process runs.
func TestLevel(t *testing.T) {
	out := &output{}
	log := ops.NewLogger(out, slog.LevelInfo, true)
	url := serve(t, ops.Config{Token: token, Log: log}) + "/log/level"
	operator := authorization("Bearer " + token)
	set := func(body string, as ...func(*http.Request)) answer {
		t.Helper()
		return do(t, http.MethodPut, url, append(as, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(body)) })...)
	}
	if a := get(t, url, operator); a.body != `{"level":"info"}`+"\n" {
		t.Errorf("at first: %d %s", a.status, a.body)
	}
	if get(t, url).status != http.StatusUnauthorized || set("debug").status != http.StatusUnauthorized {
		t.Error("no token is needed")
	}
	for _, body := range []string{"", "verbose", "DEBUG+1", strings.Repeat("debug", 100)} {
		if a := set(body, operator); a.status != http.StatusBadRequest {
			t.Errorf("%.20q: %d", body, a.status)
		}
	}
	log.Debug("before")
	if a := set("debug\n", operator); !a.ok() || a.body != `{"level":"debug"}`+"\n" {
		t.Errorf("debug: %d %s", a.status, a.body)
	}
	log.With("a", 1).Debug("after")
	if a := set("error", operator); !a.ok() {
		t.Errorf("error: %d %s", a.status, a.body)
	}
	log.Warn("too low")
	if out.count(`"before"`) != 0 || out.count(`"after"`) != 1 || out.count(`"too low"`) != 0 {
		t.Errorf("the log:\n%s", out)
	}
	if out.count(`"msg":"log level changed","from":"info","to":"debug"`) != 1 || out.count(`"msg":"log level changed","from":"debug","to":"error"`) != 1 {
		t.Errorf("the changes are not logged:\n%s", out)
	}
}
