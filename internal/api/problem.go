package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/statement"
)

const mimeProblem = "application/problem+json"

// problem is an error as clients see it (RFC 9457).
type problem struct {
	Type      string  `json:"type"`
	Title     string  `json:"title"`
	Status    int     `json:"status"`
	Detail    string  `json:"detail"`
	Code      string  `json:"code"`
	RequestID string  `json:"request_id"`
	Errors    []fault `json:"errors,omitempty"`

	retryAfter int    // seconds; 0 for no header
	reason     string // of a refusal, for the metric; empty for any other problem
}

// fault is one fault of a request.
type fault struct {
	Pointer   *string `json:"pointer,omitempty"`   // into the body (RFC 6901), empty for all of it
	Parameter *string `json:"parameter,omitempty"` // of the query
	Code      string  `json:"code"`
	Detail    string  `json:"detail"`
}

func (p *problem) Error() string {
	return fmt.Sprintf("%d %s: %s", p.Status, p.Code, p.Detail)
}

func newProblem(status int, code, detail string) *problem {
	return &problem{
		Type:   "urn:passbook:problem:" + code,
		Title:  http.StatusText(status),
		Status: status,
		Detail: detail,
		Code:   code,
	}
}

// The codes that more than one place answers with.
const (
	codeInvalidRequest     = "invalid_request"
	codeInvalidCredentials = "invalid_credentials" //nolint:gosec // a code, no credential
	codeKeyReused          = "idempotency_key_reused"
)

// busyRetry is the Retry-After of a request that may succeed soon, in seconds.
const busyRetry = 1

var (
	unavailable = problem{
		Status: http.StatusServiceUnavailable, Code: "unavailable", retryAfter: busyRetry,
		Detail: "The service could not answer. It may still have done this. Send the same request again, with the same Idempotency-Key if it had one.",
	}
	unauthenticated = problem{
		Status: http.StatusUnauthorized, Code: "unauthenticated",
		Detail: "This needs an access token: Authorization: Bearer ACCESS_TOKEN. It is missing, malformed, expired or revoked.",
	}
	internalError = problem{
		Status: http.StatusInternalServerError, Code: "internal_error",
		Detail: "Something went wrong on our side. It is logged under this request_id. You may send the same request again, with the same Idempotency-Key if it had one.",
	}
)

// problems maps errors to the problems that clients see.
var problems = []struct {
	err error
	problem
}{
	{auth.ErrUnauthenticated, unauthenticated},
	{auth.ErrNotFound, unauthenticated}, // a database restored to before the user, while the session is still cached
	{ledger.ErrUserNotFound, unauthenticated},
	{auth.ErrInvalidCredentials, problem{
		Status: http.StatusUnauthorized, Code: codeInvalidCredentials,
		Detail: "The email and the password don't belong together.",
	}},
	{auth.ErrInvalidRefreshToken, problem{
		Status: http.StatusUnauthorized, Code: "invalid_refresh_token",
		Detail: "The refresh token is unknown, expired, spent or revoked. Log in again.",
	}},
	{auth.ErrEmailTaken, problem{
		Status: http.StatusConflict, Code: "email_taken",
		Detail: "There is a user with this email.",
	}},
	{auth.ErrBusy, problem{
		Status: http.StatusServiceUnavailable, Code: "unavailable", retryAfter: busyRetry,
		Detail: "Too many sign-ups and log-ins are under way. Nothing happened; send this one again after Retry-After.",
	}},
	{ledger.ErrAccountNotFound, problem{
		Status: http.StatusNotFound, Code: "account_not_found",
		Detail: "You have no account with this number.",
	}},
	{ledger.ErrAccountClosed, problem{
		Status: http.StatusConflict, Code: "account_closed",
		Detail: "This account is closed and takes no deposits and withdrawals. Nothing happened. Its history stays readable.",
	}},
	{ledger.ErrNumberTaken, problem{
		Status: http.StatusConflict, Code: "number_taken",
		Detail: "There is an account with this number. Choose another, or leave number out.",
	}},
	{ledger.ErrTooManyAccounts, problem{
		Status: http.StatusConflict, Code: "account_limit_reached", reason: refusedAccount,
		Detail: "You have as many accounts as a user may open.",
	}},
	{ledger.ErrKeyReused, problem{
		Status: http.StatusUnprocessableEntity, Code: codeKeyReused,
		Detail: "You have used this Idempotency-Key for something else. Nothing happened.",
	}},
	{ledger.ErrKeyBusy, problem{
		Status: http.StatusServiceUnavailable, Code: "unavailable", retryAfter: busyRetry,
		Detail: "Another request with this Idempotency-Key is under way. Nothing happened; send this one again, with the same key.",
	}},
	{job.ErrNotFound, problem{
		Status: http.StatusNotFound, Code: "job_not_found",
		Detail: "You have no job with this id.",
	}},
	{job.ErrQueueFull, problem{
		Status: http.StatusTooManyRequests, Code: "account_queue_full", retryAfter: busyRetry, reason: refusedQueue,
		Detail: "This account takes no more queued jobs, or not as many as this batch has. Nothing happened; send it again when some have finished.",
	}},
	{job.ErrOverloaded, problem{
		Status: http.StatusServiceUnavailable, Code: "unavailable", retryAfter: busyRetry, reason: refusedAccept,
		Detail: "Too many deposits and withdrawals, or too many of your batches, wait to be accepted. Nothing happened; send this again after Retry-After.",
	}},
	{job.ErrUnavailable, unavailable},
	{postgres.ErrLocked, unavailable},
	{event.ErrUnknownSeq, *errLastEventID},
	{statement.ErrNotFound, problem{
		Status: http.StatusNotFound, Code: "transaction_not_found",
		Detail: "This account has no transaction with this seq.",
	}},
}

// fiberProblems does the same for the statuses with which Fiber and its server refuse a request.
var fiberProblems = map[int]problem{
	http.StatusNotFound:              {Code: "route_not_found", Detail: "There is nothing at this path. See /openapi.yaml."},
	http.StatusMethodNotAllowed:      {Code: "method_not_allowed", Detail: "This path does not take this method; see the Allow header."},
	http.StatusRequestEntityTooLarge: {Code: "body_too_large", Detail: "A body has at most 65536 bytes."},
	http.StatusBadRequest:            {Code: "malformed_request", Detail: "This HTTP request can't be read, or has a header twice that may be there once."},
	http.StatusRequestTimeout:        {Code: "request_timeout", Detail: "The request did not arrive in time."},
	http.StatusRequestHeaderFieldsTooLarge: {
		Code: "headers_too_large", Detail: "The request line and the headers have at most 16384 bytes, and there are at most 100 headers.",
	},
}

// toProblem returns the problem that the client sees for err. isOurs says that the client did not
// cause it, so that it must be logged.
func toProblem(err error) (p problem, isOurs bool) {
	if known, ok := errors.AsType[*problem](err); ok {
		return *known, false
	}
	for _, known := range problems {
		if errors.Is(err, known.err) {
			return known.problem, false
		}
	}
	if refused, ok := errors.AsType[*fiber.Error](err); ok {
		if p, known := fiberProblems[refused.Code]; known {
			p.Status = refused.Code
			return p, false
		}
		return internalError, true
	}
	if _, bug := errors.AsType[panicked](err); !bug && postgres.IsUnavailable(err) {
		return unavailable, true
	}
	return internalError, true
}

// answerError is the one place where an error becomes a response.
func (a *API) answerError(c *fiber.Ctx, err error) error {
	found, isOurs := toProblem(err)
	isRefused := c.Locals(requestIDKey{}) == nil // by the server, before any handler
	if isRefused {
		setHeaders(c)
	}
	p := newProblem(found.Status, found.Code, found.Detail)
	p.Errors = found.Errors
	p.RequestID, _ = c.Locals(requestIDKey{}).(string)
	c.Locals(codeKey{}, p.Code)
	if isOurs {
		c.Locals(failureKey{}, err)
	}
	if p.Status == http.StatusUnauthorized {
		c.Set(fiber.HeaderWWWAuthenticate, "Bearer")
	}
	if found.reason != "" {
		a.metrics.refusals.WithLabelValues(found.reason).Inc()
	}
	if found.retryAfter > 0 {
		c.Set(fiber.HeaderRetryAfter, strconv.Itoa(found.retryAfter))
	}
	c.Status(p.Status)
	if isRefused {
		a.metrics.refused(p.Status)
		failure, _ := c.Locals(failureKey{}).(error)
		a.lines.refused(p.RequestID, p.Status, p.Code, failure)
	}
	return c.JSON(p, mimeProblem)
}

// errMalformed is the error of a number, an id or a seq in a path that no account, job or transaction
// can have. No row decides that.
var errMalformed = errors.New("malformed path")

// hasNoOutcome reports whether the answer depends on no job's outcome: the request itself is wrong
// or refused. Any other 404 depends on the database: a server that was the primary, and has not noticed
// that it no longer is, does not know what was accepted since. Its 404 can't be confirmed.
func hasNoOutcome(err error) bool {
	if errors.Is(err, errMalformed) {
		return true
	}
	p, _ := toProblem(err)
	switch p.Status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotAcceptable, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusTooManyRequests, http.StatusHTTPVersionNotSupported,
		http.StatusInternalServerError, http.StatusServiceUnavailable:
		return true
	}
	return p.Code == codeInvalidRequest
}

// invalid returns a problem with the faults of a request.
func invalid(status int, code, detail string, faults []fault) error {
	p := newProblem(status, code, detail)
	p.Errors = slices.Clone(faults)
	return p
}
