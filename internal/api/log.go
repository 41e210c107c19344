package api

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ops"
)

// Keys of a request's locals, for the attributes of its line.
type (
	failureKey  struct{} // the error of a request that failed because of the server
	codeKey     struct{} // the code of its problem
	acceptedKey struct{} // the jobs of a batch
	reservedKey struct{} // whether the request may have a line; absent: not asked yet
)

// requestLines writes the lines of requests: one line a request, within bounds.
type requestLines struct {
	answered *ops.Lines
	failed   *ops.Lines // because of the server
}

func newRequestLines(log *slog.Logger) requestLines {
	return requestLines{answered: ops.NewLines(log, "request"), failed: ops.NewLines(log, "request failed")}
}

// reserve decides before the end of a request whether it gets a line.
func (l requestLines) reserve(c *fiber.Ctx) bool {
	may := l.answered.May(c.UserContext(), slog.LevelInfo)
	c.Locals(reservedKey{}, may)
	return may
}

// logRequest writes the line of a request. It says what the server has checked or made itself, and
// nothing else of what the client sent: no path, no query and no header, in which a secret may stand.
func (a *API) logRequest(c *fiber.Ctx, method, route string, took, waited time.Duration) {
	ctx := c.UserContext()
	lines, level := a.lines.answered, slog.LevelInfo
	failure, hasFailed := c.Locals(failureKey{}).(error)
	switch {
	case hasFailed:
		lines, level = a.lines.failed, slog.LevelError
	case isProbe[route]:
		level = slog.LevelDebug
	}
	may, isReserved := c.Locals(reservedKey{}).(bool)
	if !isReserved || hasFailed {
		may = lines.May(ctx, level)
	}
	if !may {
		return
	}
	attrs := append(make([]slog.Attr, 0, 16), slog.String("request_id", requestID(c)), slog.String("method", method),
		slog.String("route", route), slog.Int("status", c.Response().StatusCode()), slog.String("outcome", outcomeOf(c)),
		slog.Float64("took_ms", milliseconds(took)))
	attrs = append(attrs, about(c)...)
	if waited > 0 {
		attrs = append(attrs, slog.Float64("waited_ms", milliseconds(waited)))
	}
	if lines.IsDebug(ctx) {
		attrs = append(attrs, slog.String("client", a.clientAddress(c).String()), slog.Int("request_bytes", len(c.Request().Body())))
	}
	if hasFailed {
		attrs = append(attrs, slog.Any("error", failure))
	}
	lines.Write(ctx, level, attrs...)
}

// about returns the attributes that name the request's user, account, job and trace.
func about(c *fiber.Ctx) (attrs []slog.Attr) {
	if user := caller(c); user != uuid.Nil {
		attrs = append(attrs, slog.String("user_id", user.String()))
	}
	if number := c.Params("number"); numberPattern.MatchString(number) {
		attrs = append(attrs, slog.String("account", strings.Clone(number)))
	}
	if id := jobOf(c); id != "" {
		attrs = append(attrs, slog.String("job_id", id))
	}
	if jobs, ok := c.Locals(acceptedKey{}).([]job.Job); ok {
		ids := make([]string, len(jobs))
		for i, one := range jobs {
			ids[i] = one.ID.String()
		}
		attrs = append(attrs, slog.Any("job_ids", ids))
	}
	if span := trace.SpanContextFromContext(c.UserContext()); span.HasTraceID() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()))
	}
	return attrs
}

// refused writes the line of a request that the server refused before any handler. failure is the error
// of a failing server, or nil. The line has no method and no path: they may be unread, or any text.
func (l requestLines) refused(id string, status int, code string, failure error) {
	ctx := context.Background() // the request has none yet
	lines, level := l.answered, slog.LevelInfo
	if failure != nil {
		lines, level = l.failed, slog.LevelError
	}
	if !lines.May(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("request_id", id), slog.String("route", noRoute), slog.Int("status", status), slog.String("outcome", code),
	}
	if failure != nil {
		attrs = append(attrs, slog.Any("error", failure))
	}
	lines.Write(ctx, level, attrs...)
}

// isProbe has the routes that balancers and monitors request often. Their lines have the level debug.
var isProbe = map[string]bool{"/livez": true, "/readyz": true}

// outcomeOf is the code of the problem that was answered, or ok.
func outcomeOf(c *fiber.Ctx) string {
	if code, isProblem := c.Locals(codeKey{}).(string); isProblem {
		return code
	}
	return "ok"
}

const jobPath = "/v1/jobs/"

// jobOf returns the id of the job that a request read or made; empty for none. A text of the client that
// is no id is left out.
func jobOf(c *fiber.Ctx) string {
	id, isMade := strings.CutPrefix(string(c.Response().Header.Peek(fiber.HeaderLocation)), jobPath)
	if !isMade {
		id = c.Params("id")
	}
	if parsed, err := uuid.Parse(id); err == nil {
		return parsed.String()
	}
	return ""
}

func requestID(c *fiber.Ctx) string {
	id, _ := c.Locals(requestIDKey{}).(string)
	return id
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
