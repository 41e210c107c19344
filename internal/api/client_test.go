package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/finished"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/internal/test/testenv"
)

const (
	manyQueued = 10_000
	poolConns  = 16
	stopWait   = 10 * time.Second

	// patient is the time limit of a request, unless a test is of requestTimeout itself: a busy machine
	// may need longer for a password.
	patient = time.Minute
)

var (
	firstKey  = auth.Key{ID: "one", Secret: bytes.Repeat([]byte{1, 2}, 16)}
	secondKey = auth.Key{ID: "two", Secret: bytes.Repeat([]byte{2, 3}, 16)}
)

// server is an API that serves until its test ends.
type server struct {
	api  *API
	gate *postgres.Gate

	checks *ops.Checks
	hub    *finished.Hub
	pool   *pgxpool.Pool
	addr   string
	log    *logBuffer
	http   *http.Client
}

// inFront returns the address that clients of the server at addr use.
var inFront = func(_ *testing.T, addr string) string { return addr }

type settings struct {
	pool      *pgxpool.Pool // a database of its own where nil
	maxQueued int
	keys      []auth.Key
	checks    []ops.Check
	stopping  chan struct{}
	messages  finished.Messages // of the workers; none at first
	total     int               // connections
	address   int               // connections of each
	accounts  int               // of a user; 0 for no bound
	limits    Limits
	timeout   time.Duration                                             // of a request
	edit      func(*API)                                                // before it serves
	control   func(network, address string, conn syscall.RawConn) error // of its listener; nil for none
}

type silent struct{}

func (silent) Notify(int64, int64, uuid.UUID, int, map[uuid.UUID]string) {}

// Run hears nothing, as while Redis is away.
func (silent) Run(ctx context.Context, _ func([]queue.Finished), _ func(bool)) { <-ctx.Done() }

func start(t *testing.T, edits ...func(*settings)) *server {
	t.Helper()
	set := settings{maxQueued: manyQueued, keys: []auth.Key{firstKey}, messages: silent{}, timeout: patient, edit: func(*API) {}}
	for _, edit := range edits {
		edit(&set)
	}
	if set.pool == nil {
		set.pool = openPool(t, testenv.Postgres(t))
	}
	s := &server{pool: set.pool, log: &logBuffer{}, http: &http.Client{Transport: &http.Transport{}}}
	acceptor := job.NewAcceptor(s.pool, silent{}, set.maxQueued)
	if set.timeout > requestTimeout {
		acceptor.Timeout = set.timeout
	}
	s.gate = postgres.NewGate(prometheus.NewRegistry(), set.pool)
	s.hub = finished.New(set.messages, set.pool, slog.New(slog.DiscardHandler))
	s.checks = ops.NewChecks(slog.New(slog.NewTextHandler(s.log, nil)), set.checks...)
	s.checks.Probe(t.Context())
	s.api = s.newAPI(t, acceptor, set)
	s.api.timeout = set.timeout
	set.edit(s.api)
	listener, err := (&net.ListenConfig{Control: set.control}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = listener.Addr().String()

	accepting, stopAccepting := context.WithCancel(context.Background())
	var serving, running errgroup.Group
	running.Go(func() error { return acceptor.Run(accepting) })
	running.Go(func() error { return s.gate.Run(accepting) })
	running.Go(func() error { return s.hub.Run(accepting) })
	running.Go(func() error { return s.checks.Run(accepting) })
	serving.Go(func() error { return s.api.Serve(listener) })
	t.Cleanup(func() {
		s.http.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), stopWait)
		defer cancel()
		if err := s.api.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := serving.Wait(); err != nil {
			t.Error(err)
		}
		stopAccepting()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	})
	s.addr = inFront(t, s.addr)
	return s
}

// openPool connects as the API does, with no bounds on what a test may do.
func openPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns, cfg.AfterConnect = poolConns, postgres.SecureSession
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (s *server) newAPI(t *testing.T, acceptor *job.Acceptor, set settings) *API {
	t.Helper()
	service, err := auth.New(s.pool, auth.Config{Keys: set.keys})
	if err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	for _, key := range set.keys {
		secrets = append(secrets, key.Secret)
	}
	accounts := ledger.NewAccounts(s.pool)
	accounts.MaxPerUser = set.accounts
	a, err := New(Config{
		Auth:       service,
		Accounts:   accounts,
		Limits:     set.limits,
		Acceptor:   acceptor,
		Jobs:       job.NewReader(s.pool),
		Statements: statement.New(s.pool, nil),
		Events:     event.NewReader(s.pool),
		Gate:       s.gate,
		Finished:   s.hub,
		CursorKeys: secrets,
		Checks:     s.checks,
		Stopping:   set.stopping,

		MaxConnections: set.total, MaxConnectionsPerAddress: set.address,
		Registry: prometheus.NewRegistry(),
		Log:      ops.NewLogger(s.log, slog.LevelDebug, true),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// logBuffer is what the API logged.
type logBuffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logBuffer) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// lines are those that hold every one of the texts.
func (l *logBuffer) lines(texts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			found = append(found, line)
		}
	}
	return found
}

// anonymous is a client without a token.
func (s *server) anonymous(t *testing.T) client {
	t.Helper()
	return client{t: t, server: s}
}

// cheapHash is the hash of a password that no test has, and costs little to compare with.
const cheapHash = "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// user is a client with a user and a session of its own, made without the cost
// of hashing a password. users_test.go goes the long way.
func (s *server) user(t *testing.T) client {
	t.Helper()
	c := s.anonymous(t)
	c.userID = uuid.Must(uuid.NewV7())
	ledgertest.Exec(t, s.pool, `INSERT INTO users (id, email, email_key, password_hash) VALUES ($1, $2, $2, $3)`, c.userID, c.userID.String()+"@example.com", cheapHash)
	c.token = signToken(t, jwt.SigningMethodHS256, firstKey, c.claims())
	return c
}

// claims are those of a good token of a new session of the client's user.
func (c client) claims() jwt.MapClaims {
	c.t.Helper()
	session := uuid.New()
	ledgertest.Exec(c.t, c.server.pool, `INSERT INTO sessions (id, user_id) VALUES ($1, $2)`, session, c.userID)
	now := time.Now()
	return jwt.MapClaims{
		"iss": "passbook", "aud": "passbook", "sub": c.userID, "sid": session, "jti": uuid.New(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
}

func signToken(t *testing.T, method jwt.SigningMethod, key auth.Key, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	token.Header["typ"], token.Header["kid"] = "at+jwt", key.ID
	var secret any = key.Secret
	if method == jwt.SigningMethodNone {
		secret = jwt.UnsafeAllowNoneSignatureType
	}
	signed, err := token.SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// client sends requests. Whatever comes back is held against openapi.yaml, and
// so is every request that was not refused.
type client struct {
	t      *testing.T
	server *server
	userID uuid.UUID
	token  string
}

// in is the client for a subtest.
func (c client) in(t *testing.T) client {
	t.Helper()
	c.t = t
	return c
}

// get asks with headers, which are names and values in turn.
func (c client) get(target string, headers ...string) answer {
	c.t.Helper()
	return c.send(http.MethodGet, target, "", headers...)
}

// post sends a body as JSON, unless the headers say otherwise.
func (c client) post(target, body string, headers ...string) answer {
	c.t.Helper()
	return c.send(http.MethodPost, target, body, append([]string{"Content-Type", "application/json"}, headers...)...)
}

// send is every request's way. An empty header value removes the header.
func (c client) send(method, target, body string, headers ...string) answer {
	c.t.Helper()
	a, err := c.try(method, target, body, headers...)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// try is send for where there may be no answer. It may run beside the test.
func (c client) try(method, target, body string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+c.server.addr+target, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for pair := range slices.Chunk(headers, 2) {
		if req.Header.Del(pair[0]); pair[1] != "" {
			req.Header.Set(pair[0], pair[1])
		}
	}
	res, err := c.server.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	return readAnswer(c.t, req, body, res)
}

// sendRaw writes bytes that are no request to speak of, and reads one answer.
func (c client) sendRaw(text string) answer {
	c.t.Helper()
	return c.sendRawAs(nil, text)
}

// sendRawAs is sendRaw for bytes that mean req.
func (c client) sendRawAs(req *http.Request, text string) answer {
	c.t.Helper()
	conn, err := new(net.Dialer).DialContext(c.t.Context(), "tcp", c.server.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it has been read
	if _, err := io.WriteString(conn, text); err != nil {
		c.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	a, err := readAnswer(c.t, req, "", res)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// answer is a response that is as openapi.yaml says.
type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   []byte
	closes bool // the connection, as its Connection header says
}

// readAnswer takes no request where what was sent may be none.
func readAnswer(t *testing.T, req *http.Request, sent string, res *http.Response) (answer, error) {
	t.Helper()
	body, err := readBeginning(res)
	_ = res.Body.Close()
	if err != nil {
		return answer{}, err
	}
	a := answer{t: t, status: res.StatusCode, header: res.Header, body: body, closes: res.Close}
	for _, fault := range againstContract(t, req, sent, a) {
		t.Errorf("openapi.yaml: %s\n%s", fault, a)
	}
	return a, nil
}

// readBeginning reads a body, of an event stream only what it begins with.
func readBeginning(res *http.Response) (body []byte, err error) {
	if res.Header.Get("Content-Type") != mimeEvents {
		return io.ReadAll(res.Body)
	}
	for lines := bufio.NewReader(res.Body); err == nil && !bytes.HasSuffix(body, []byte("\n\n")); {
		var line []byte
		line, err = lines.ReadBytes('\n')
		body = append(body, line...)
	}
	if errors.Is(err, io.EOF) && len(body) == 0 { // the answer to HEAD
		err = nil
	}
	return body, err
}

func (a answer) String() string {
	return fmt.Sprintf("%d %v\n%s", a.status, a.header, a.body)
}

// want fails the test unless the status is as wanted.
func (a answer) want(status int) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("got %s\nwant %d", a, status)
	}
	return a
}

func (a answer) wantHeader(name, value string) answer {
	a.t.Helper()
	if got := a.header.Values(name); !slices.Equal(got, []string{value}) {
		a.t.Errorf("%s: %q, want %q", name, got, value)
	}
	return a
}

// wantCloses fails the test unless the answer says whether the connection ends.
func (a answer) wantCloses(closes bool) answer {
	a.t.Helper()
	if a.closes != closes {
		a.t.Errorf("the connection closes: %t, want %t", a.closes, closes)
	}
	return a
}

func (a answer) wantNoHeader(name string) answer {
	a.t.Helper()
	if got, there := a.header[name]; there {
		a.t.Errorf("%s: %q, want none", name, got)
	}
	return a
}

// problem fails the test unless it is this one. faults are each a JSON pointer
// or the name of a parameter, a space and a code; all of them must be there.
func (a answer) problem(status int, code string, faults ...string) answer {
	a.t.Helper()
	a.want(status).wantHeader("Content-Type", "application/problem+json")
	p := decode[problemJSON](a)
	wantTitle, wantType := http.StatusText(status), "urn:passbook:problem:"+code
	if p.Code != code || p.Status != status || p.Title != wantTitle || p.Type != wantType {
		a.t.Fatalf("got %s\nwant %s", a, code)
	}
	if id := a.header.Get("X-Request-Id"); p.RequestID != id {
		a.t.Errorf("request_id %q, X-Request-Id %q", p.RequestID, id)
	}
	var got []string
	for _, f := range p.Errors {
		switch {
		case f.Pointer != nil:
			got = append(got, *f.Pointer+" "+f.Code)
		case f.Parameter != nil:
			got = append(got, *f.Parameter+" "+f.Code)
		}
	}
	slices.Sort(got)
	slices.Sort(faults)
	if !slices.Equal(got, faults) {
		a.t.Errorf("faults %q, want %q", got, faults)
	}
	return a
}

// sameAs fails the test unless both answers are the same to the byte. Both
// requests must have had the same X-Request-Id.
func (a answer) sameAs(b answer) {
	a.t.Helper()
	a.header, b.header = maps.Clone(a.header), maps.Clone(b.header)
	delete(a.header, "Date")
	delete(b.header, "Date")
	if a.String() != b.String() {
		a.t.Errorf("these differ:\n%s\n%s", a, b)
	}
}

type problemJSON struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
	Errors    []struct {
		Pointer   *string `json:"pointer"`
		Parameter *string `json:"parameter"`
		Code      string  `json:"code"`
		Detail    string  `json:"detail"`
	} `json:"errors"`
}

type accountJSON struct {
	Number    string `json:"number"`
	Currency  string `json:"currency"`
	Balance   int64  `json:"balance"`
	LastSeq   int64  `json:"last_seq"`
	Status    string `json:"status"`
	CreatedAt string `json:"created_at"`
}

type jobJSON struct {
	ID          string  `json:"id"`
	Account     string  `json:"account"`
	Type        string  `json:"type"`
	Amount      int64   `json:"amount"`
	Currency    string  `json:"currency"`
	Description *string `json:"description"`
	Status      string  `json:"status"`
	Failure     *struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
	} `json:"failure"`
	Transaction *struct {
		Seq          int64  `json:"seq"`
		BalanceAfter int64  `json:"balance_after"`
		CreatedAt    string `json:"created_at"`
	} `json:"transaction"`
	CreatedAt  string  `json:"created_at"`
	FinishedAt *string `json:"finished_at"`
}

type transactionJSON struct {
	Seq          int64   `json:"seq"`
	Type         string  `json:"type"`
	Amount       int64   `json:"amount"`
	BalanceAfter int64   `json:"balance_after"`
	Description  *string `json:"description"`
	JobID        *string `json:"job_id"`
	CreatedAt    string  `json:"created_at"`
}

type pageJSON[T any] struct {
	Data       []T     `json:"data"`
	HasMore    bool    `json:"has_more"`
	NextCursor *string `json:"next_cursor"`
}

func decode[T any](a answer) T {
	a.t.Helper()
	var v T
	if err := json.Unmarshal(a.body, &v); err != nil {
		a.t.Fatalf("%v\n%s", err, a)
	}
	return v
}

// open opens an account with a balance.
func (c client) open(balance int64) accountJSON {
	c.t.Helper()
	body := "{}"
	if balance > 0 {
		body = fmt.Sprintf(`{"initial_deposit":%d}`, balance)
	}
	return decode[accountJSON](c.post("/v1/accounts", body).want(http.StatusCreated))
}

// ask has a job accepted; kind is deposits or withdrawals.
func (c client) ask(account accountJSON, kind string, amount int64) jobJSON {
	c.t.Helper()
	a := c.post(jobsOf(account, kind), fmt.Sprintf(`{"amount":%d}`, amount), "Idempotency-Key", uuid.NewString())
	return decode[jobJSON](a.want(http.StatusAccepted))
}

func jobsOf(account accountJSON, kind string) string {
	return "/v1/accounts/" + account.Number + "/" + kind
}

// apply finishes the job and those before it.
func (s *server) apply(t *testing.T, id string) {
	t.Helper()
	for range ledger.MaxAttempts {
		_, _, err := ledger.NewApplier(s.pool).Apply(t.Context(), uuid.MustParse(id), manyQueued)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), ledger.ErrRefused.Error()) {
			t.Fatal(err)
		}
	}
}

// walk reads a whole list by its links, as they are.
func walk[T any](c client, target string, limit int) (all []T) {
	c.t.Helper()
	for target != "" {
		a := c.get(target).want(http.StatusOK)
		page := decode[pageJSON[T]](a)
		all = append(all, page.Data...)
		link := a.header.Get("Link")
		target, _ = strings.CutPrefix(link, "<")
		target, _ = strings.CutSuffix(target, `>; rel="next"`)
		switch {
		case page.HasMore != (page.NextCursor != nil) || page.HasMore != (link != ""):
			c.t.Fatalf("has_more, next_cursor and Link disagree: %s", a)
		case page.HasMore && len(page.Data) != limit:
			c.t.Fatalf("%d items on a page of %d that is not the last", len(page.Data), limit)
		case page.HasMore && !strings.Contains(link, *page.NextCursor):
			c.t.Fatalf("Link is without next_cursor: %s", a)
		}
	}
	return all
}
