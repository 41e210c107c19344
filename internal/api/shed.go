package api

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"github.com/passbook/passbook/internal/job"
)

var accountPaths = []byte("/v1/accounts/")

// shed refuses deposits and withdrawals while too many wait to be accepted, before any other work: at
// three times the possible load it refuses two of three. It keeps the connections open, because the
// bodies have arrived and a new connection would cost both sides more.
func (a *API) shed(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	refuse := a.refuser(job.ErrOverloaded)
	return func(c *fasthttp.RequestCtx) {
		if !c.IsPost() || !bytes.HasPrefix(c.Path(), accountPaths) || !a.overloaded() {
			next(c)
			return
		}
		refuse(c)
	}
}

// refuser returns a handler that answers every request with the problem of err, as answerError would.
// It makes the answer once, except for the request id, so it takes a fraction of the time
// (BenchmarkShed).
func (a *API) refuser(err error) fasthttp.RequestHandler {
	const mark = "REQUEST_ID" // no other part of a problem
	found, _ := toProblem(err)
	p := newProblem(found.Status, found.Code, found.Detail)
	p.RequestID = mark
	body, _ := json.Marshal(p) // has nothing that can't be marshalled
	before, after, _ := bytes.Cut(body, []byte(mark))
	retryAfter := []byte(strconv.Itoa(found.retryAfter))
	reasons := a.metrics.refusals.WithLabelValues(found.reason)
	return func(c *fasthttp.RequestCtx) {
		id := requestIDOf(string(c.Request.Header.Peek(fiber.HeaderXRequestID)))
		header := &c.Response.Header
		header.SetStatusCode(found.Status)
		header.SetContentType(mimeProblem)
		header.Set(fiber.HeaderXRequestID, id)
		header.Set(fiber.HeaderCacheControl, noStore)
		header.Set(fiber.HeaderXContentTypeOptions, noSniff)
		header.SetBytesV(fiber.HeaderRetryAfter, retryAfter)
		c.Response.AppendBody(before)
		c.Response.AppendBodyString(id)
		c.Response.AppendBody(after)
		reasons.Inc()
		a.metrics.refused(found.Status)
		a.lines.refused(id, found.Status, found.Code, nil)
	}
}
