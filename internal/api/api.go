// Package api is the HTTP edge: it turns requests into calls, and their results into responses.
// Its promise: it answers as openapi.yaml says, and no internal error text reaches a client.
package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/finished"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/statement"
)

// Bounds on a request.
const (
	maxBody        = 64 << 10
	maxHead        = 16 << 10                // request line and headers, in bytes
	requestTimeout = 1700 * time.Millisecond // a 503 within 2 s, also on a busy machine
	readTimeout    = 10 * time.Second        // for a slow client to send its request
	writeTimeout   = 30 * time.Second
	idleTimeout    = 2 * time.Minute
)

// Config is what the API serves with.
type Config struct {
	Auth       *auth.Service
	Accounts   *ledger.Accounts
	Acceptor   *job.Acceptor
	Jobs       *job.Reader
	Statements *statement.Statements
	Events     *event.Reader
	Gate       *postgres.Gate  // holds an answer until what it shows is durable
	Finished   *finished.Hub   // tells of jobs that finish
	CursorKeys [][]byte        // the first signs cursors, all verify
	Checks     *ops.Checks     // what /readyz shows; nil for none
	Stopping   <-chan struct{} // closed when the process begins to stop; nil for never
	Registry   prometheus.Registerer
	Log        *slog.Logger
	Tracer     trace.Tracer // nil for no traces

	Limits Limits // on how often clients ask

	// MaxConnections and MaxConnectionsPerAddress bound what Serve accepts; 0 is no bound.
	MaxConnections, MaxConnectionsPerAddress int
}

// API serves the contract.
type API struct {
	cfg     Config
	cursors cursors
	metrics *metrics
	lines   requestLines
	app     *fiber.App
	exports exports
	streams streams
	policy  string        // of the users' limit, as its header says it
	timeout time.Duration // of a request: requestTimeout; tests have others

	callers   *slots    // of requests with an access token
	guests    *slots    // of log-ins and sign-ups
	refreshes *slots    // of refreshes and revokes
	users     userSlots // of callers

	overloaded func() bool // the Acceptor's

	shutdown  chan struct{} // closed when Shutdown begins
	closeOnce func()        // closes shutdown

	mu       sync.Mutex // guards the fields below
	listener *listener
	stopped  bool
}

// New makes an API; Serve starts it.
func New(cfg Config) (*API, error) {
	a := &API{
		cfg: cfg, cursors: newCursors(cfg.CursorKeys), metrics: newMetrics(cfg.Registry), lines: newRequestLines(cfg.Log),
		timeout: requestTimeout, shutdown: make(chan struct{}),
		policy: policyOf(cfg.Limits.Requests.Quota()), overloaded: cfg.Acceptor.IsOverloaded,
		callers: &slots{most: maxInFlight}, guests: &slots{most: maxGuestsInFlight},
		refreshes: &slots{most: maxRefreshesInFlight},
		users:     userSlots{most: maxInFlightPerUser, taken: map[uuid.UUID]int{}},
	}
	a.closeOnce = sync.OnceFunc(func() { close(a.shutdown) })
	a.exports = newExports(a.metrics.exports)
	a.streams = newStreams(cfg, a.metrics)
	a.app = fiber.New(fiber.Config{
		AppName:               "Passbook",
		DisableStartupMessage: true,
		BodyLimit:             maxBody,
		StreamRequestBody:     true, // receive reads it
		ReadBufferSize:        maxHead,
		ReadTimeout:           readTimeout,
		WriteTimeout:          writeTimeout,
		IdleTimeout:           idleTimeout,
		ReduceMemoryUsage:     true, // an idle connection, or one that waits for a job, keeps no buffer for an answer
		StrictRouting:         true,
		CaseSensitive:         true,
		ErrorHandler:          a.answerError,

		DisablePreParseMultipartForm: true, // readBody refuses it
	})
	a.app.Server().CloseOnShutdown = true // the last answers say that the connection closes
	a.app.Server().ConnState = follow
	a.app.Server().KeepHijackedConns = true // an event stream closes its own
	a.app.Server().Handler = a.closing(a.received(a.framed(a.shed(known(a.app.Handler())))))
	a.app.Server().HeaderReceived = refuseAnnounced
	a.app.Use(a.observe)
	routes, err := a.routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		a.app.Add(r.method, r.path, a.handler(r))
		if r.method == fiber.MethodGet {
			a.app.Add(fiber.MethodHead, r.path, a.handler(r))
		}
	}
	return a, nil
}

// framed answers 400 and closes the connection where a proxy could read the request's end or
// its key in another way: what follows may be a part of the request.
func (a *API) framed(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		if isFramed(c) {
			next(c)
			return
		}
		a.app.Server().ErrorHandler(c, fiber.ErrBadRequest)
		c.SetConnectionClose()
	}
}

// closing adds Connection: close to each answer once the process begins to stop, so that a load
// balancer has no idle connection to send on when the listener closes.
func (a *API) closing(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		next(c)
		if a.isStopping() {
			c.SetConnectionClose()
		}
	}
}

func (a *API) isStopping() bool {
	select {
	case <-a.cfg.Stopping:
		return true
	default:
		return false
	}
}

// known replaces a method that Fiber doesn't know by one that no route takes: Fiber itself would
// answer it, and not as the contract says.
func known(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		if !slices.Contains(fiber.DefaultMethods, string(c.Method())) {
			c.Request.Header.SetMethod(fiber.MethodTrace)
		}
		next(c)
	}
}

// Serve answers requests on inner until Shutdown; after Shutdown it answers none.
func (a *API) Serve(inner net.Listener) error {
	listener := a.newListener(inner)
	a.mu.Lock()
	a.listener = listener
	if a.stopped {
		listener.stop()
	}
	a.mu.Unlock()
	if err := a.app.Listener(listener); err != nil {
		return fmt.Errorf("serve API: %w", err)
	}
	return nil
}

// Shutdown accepts no more connections, answers the requests in flight, and returns when the
// last is answered and its connection has ended, or ctx ends. It does not wait for a request
// that does not arrive in arrivalTime. It cuts exports off, because they may take half an hour. It
// ends event streams: their clients connect to another API. It answers requests that wait for a job
// with the job as it stands.
func (a *API) Shutdown(ctx context.Context) error {
	listener := a.stop()
	a.closeOnce()
	a.exports.stop()
	a.streams.stop()
	if err := a.app.ShutdownWithContext(ctx); err != nil {
		return fmt.Errorf("shut API down: %w", err)
	}
	if listener != nil {
		listener.open.Wait() // for lingerTime at most
	}
	return nil
}

// stop closes the listener. Fiber can't: it does not know the listener before it serves on it.
func (a *API) stop() *listener {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	if a.listener != nil {
		a.listener.stop()
	}
	return a.listener
}

// route is one operation of the contract.
type route struct {
	method, path string
	open         bool // needs no access token
	refreshes    bool // takes a refresh token
	noOutcome    bool // shows nothing of any account, so its answers wait for no confirmation
	accepts      bool // the Acceptor bounds how many of its requests are in flight
	handle       func(*fiber.Ctx, *query) error
	query        []string // the parameters that it takes
}

func (a *API) routes() ([]route, error) {
	docs, err := docsRoutes()
	if err != nil {
		return nil, err
	}
	const get, post, put = fiber.MethodGet, fiber.MethodPost, fiber.MethodPut
	return append(docs, []route{
		{method: post, path: "/v1/users", open: true, noOutcome: true, handle: a.signUp},
		{method: get, path: "/v1/users/me", noOutcome: true, handle: a.me},
		{method: put, path: "/v1/users/me/password", noOutcome: true, handle: a.changePassword},
		{method: post, path: "/v1/sessions", open: true, noOutcome: true, handle: a.logIn},
		{method: post, path: "/v1/sessions/refresh", open: true, refreshes: true, noOutcome: true, handle: a.refresh},
		{method: post, path: "/v1/sessions/revoke", open: true, refreshes: true, noOutcome: true, handle: a.revoke},

		{method: post, path: "/v1/accounts", handle: a.openAccount},
		{method: get, path: "/v1/accounts", handle: a.listAccounts, query: []string{"limit", "cursor"}},
		{method: get, path: "/v1/accounts/:number", handle: a.readAccount},
		{method: get, path: "/v1/accounts/:number/balance", handle: a.readBalance, query: []string{"at"}},

		{method: post, path: "/v1/accounts/:number/deposits", accepts: true, handle: a.accept(ledger.Deposit)},
		{method: post, path: "/v1/accounts/:number/withdrawals", accepts: true, handle: a.accept(ledger.Withdrawal)},
		{method: post, path: "/v1/accounts/:number/jobs", accepts: true, handle: a.acceptBatch},
		{method: get, path: "/v1/jobs", handle: a.findJob, query: []string{fieldKey}},
		{method: get, path: "/v1/jobs/:id", handle: a.readJob, query: []string{"wait"}},
		{
			method: get, path: "/v1/accounts/:number/jobs", handle: a.listJobs,
			query: []string{"status", "order", "limit", "cursor"},
		},

		{
			method: get, path: "/v1/accounts/:number/transactions", handle: a.listTransactions,
			query: []string{"type", "from", "to", "order", "limit", "cursor", "bom"},
		},
		{method: get, path: "/v1/accounts/:number/transactions/:seq", handle: a.readTransaction},
		{method: get, path: "/v1/accounts/:number/events", handle: a.streamEvents},

		{method: get, path: "/livez", open: true, noOutcome: true, handle: a.livez},
		{method: get, path: "/readyz", open: true, noOutcome: true, handle: a.readyz},
		{method: get, path: "/openapi.yaml", open: true, noOutcome: true, handle: static("application/yaml", openAPIYAML)},
		{method: get, path: "/openapi.json", open: true, noOutcome: true, handle: openAPIJSON},
	}...), nil
}

// Keys of a request's locals, which handlers read.
type (
	callerKey    struct{}
	requestIDKey struct{}
	routeKey     struct{}
)

// handler answers the requests of a route. A request that waits for a job waits after answer has
// released its slot, so that it takes none from the others.
func (a *API) handler(r route) fiber.Handler {
	inFlight := a.slotsOf(r)
	return func(c *fiber.Ctx) error {
		c.Locals(routeKey{}, r.path)
		if err := a.answer(c, r, inFlight); err != nil {
			return err
		}
		return a.sendPending(c)
	}
}

// answer does what all routes have in common: the bounds on requests in flight, the time limit, the
// access token, the limit of its user, the check of the query where the route takes no
// parameters, and the wait until what the answer shows is durable.
func (a *API) answer(c *fiber.Ctx, r route, inFlight *slots) error {
	if !inFlight.take() {
		return errInFlight
	}
	defer inFlight.release()
	// Not the request's own context: it ends when the server begins to stop, and requests in
	// flight must still be answered.
	ctx, cancel := context.WithTimeout(c.UserContext(), a.timeout)
	defer cancel()
	c.SetUserContext(ctx)
	if !r.open {
		identity, err := a.authenticate(c)
		if err != nil {
			return err
		}
		c.Locals(callerKey{}, identity.UserID)
		if err := a.limitUser(c, identity.UserID); err != nil {
			return err
		}
	}
	q := parseQuery(c, r.query)
	if len(r.query) == 0 && len(q.faults) > 0 {
		return q.err()
	}
	if inFlight == a.callers {
		user := caller(c)
		if !a.users.take(user) {
			return errUserInFlight
		}
		defer a.users.release(user)
	}
	return a.confirmed(c, r, q)
}

// confirmed runs the route's handler, and sends the answer once all that it shows is durable.
// Otherwise it drops the answer, with its headers and its stream. A crash of Postgres between
// the read and the confirmation ends in a 503, and the client has seen nothing of the answer.
func (a *API) confirmed(c *fiber.Ctx, r route, q *query) error {
	if r.noOutcome {
		return r.handle(c, q)
	}
	ctx, shown := a.cfg.Gate.Watch(c.UserContext())
	c.SetUserContext(ctx)
	err := r.handle(c, q)
	if err != nil && hasNoOutcome(err) {
		return err
	}
	if err != nil { // it depends on an earlier outcome, such as a key that was used
		postgres.ShowAll(ctx)
	}
	if lost := a.cfg.Gate.Wait(ctx, shown); lost != nil {
		c.Response().Reset()
		setHeaders(c)
		return lost
	}
	return err
}

// caller returns the user whose access token the request carries.
func caller(c *fiber.Ctx) uuid.UUID {
	id, _ := c.Locals(callerKey{}).(uuid.UUID)
	return id
}

// observe wraps every handler: it sets the headers of every answer, turns errors into responses,
// counts the request, writes its line and ends its span.
func (a *API) observe(c *fiber.Ctx) error {
	started := time.Now()
	setHeaders(c)
	span := a.beginTrace(c)
	if err := a.protect(c); err != nil {
		if err := a.answerError(c, err); err != nil {
			return err
		}
	}
	a.sayLimit(c)
	route, ok := c.Locals(routeKey{}).(string)
	if !ok {
		route = noRoute
	}
	waited, _ := c.Locals(waitedKey{}).(time.Duration)
	took := time.Since(started) - waited
	method := strings.Clone(c.Method()) // one of Fiber's: known replaces others
	a.metrics.request(route, method, c.Response().StatusCode(), took)
	a.logRequest(c, method, route, took, waited)
	endTrace(c, span, method, route)
	return nil
}

// protect turns a panic into an error, so that a bug in one request ends no other request.
func (a *API) protect(c *fiber.Ctx) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = panicked{cause: cause, stack: debug.Stack()}
		}
	}()
	return c.Next()
}

type panicked struct {
	cause any
	stack []byte
}

func (p panicked) Error() string {
	return fmt.Sprintf("panic: %v\n%s", p.cause, p.stack)
}

// setHeaders sets what every answer has: the request id; that no cache may keep the answer, since
// it is for its caller alone (static replaces this one); and that it is what its type says.
func setHeaders(c *fiber.Ctx) {
	id := requestIDOf(c.Get(fiber.HeaderXRequestID))
	c.Locals(requestIDKey{}, id)
	c.Set(fiber.HeaderXRequestID, id)
	c.Set(fiber.HeaderCacheControl, noStore)
	c.Set(fiber.HeaderXContentTypeOptions, noSniff)
}

const (
	noStore = "no-store" // of Cache-Control
	noSniff = "nosniff"  // of X-Content-Type-Options
)

// requestIDOf returns the client's id if ops.IsRequestID allows it, and a new one otherwise.
func requestIDOf(id string) string {
	if !ops.IsRequestID(id) {
		return uuid.NewString()
	}
	return strings.Clone(id) // Fiber's strings are buffers to be reused
}
