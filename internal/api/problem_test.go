package api

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The API answers with each code of openapi.yaml, and with no other.
func TestEveryCode(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.maxQueued = 1 })
	slow := start(t, func(set *settings) {
		set.pool = s.pool
		set.edit = func(a *API) { a.app.Server().ReadTimeout = 100 * time.Millisecond }
	})
	full := start(t, func(set *settings) { set.pool, set.accounts = s.pool, 1 })
	c := s.user(t)
	account := c.open(0)
	signUp(c)
	deposits := jobsOf(account, "deposits")
	c.post(deposits, `{"amount":1}`, "Idempotency-Key", "spent").want(http.StatusAccepted)
	closed := c.open(0)
	ledgertest.SetStatus(t, s.pool, closed.Number, ledger.Closed)
	missing := uuid.Must(uuid.NewV7()).String()
	tests := map[string]struct {
		status int
		ask    func(c client) answer
	}{
		"malformed_body":        {400, func(c client) answer { return c.post("/v1/accounts", `{`) }},
		"invalid_request":       {422, func(c client) answer { return c.post("/v1/accounts", `{"x":1}`) }},
		"invalid_parameter":     {400, func(c client) answer { return c.get("/v1/accounts?x=1") }},
		"invalid_cursor":        {400, func(c client) answer { return c.get("/v1/accounts?cursor=x") }},
		"unauthenticated":       {401, func(c client) answer { return c.get("/v1/accounts", "Authorization", "") }},
		"invalid_credentials":   {401, func(c client) answer { return c.post("/v1/sessions", `{"email":"a","password":"b"}`) }},
		"invalid_refresh_token": {401, func(c client) answer { return c.post("/v1/sessions/refresh", refreshBody("x")) }},
		"email_taken":           {409, func(c client) answer { return c.post("/v1/users", annsCredentials) }},
		"number_taken":          {409, func(c client) answer { return c.post("/v1/accounts", `{"number":"`+account.Number+`"}`) }},
		"account_closed": {409, func(c client) answer {
			return c.post(jobsOf(closed, "deposits"), `{"amount":1}`, "Idempotency-Key", "late")
		}},
		"account_limit_reached": {409, func(c client) answer {
			c.server = full
			return c.post("/v1/accounts", `{}`)
		}},
		"account_not_found":      {404, func(c client) answer { return c.get("/v1/accounts/nowhere") }},
		"job_not_found":          {404, func(c client) answer { return c.get("/v1/jobs/" + missing) }},
		"transaction_not_found":  {404, func(c client) answer { return c.get(jobsOf(account, "transactions/1")) }},
		"route_not_found":        {404, func(c client) answer { return c.get("/nowhere") }},
		"method_not_allowed":     {405, func(c client) answer { return c.send(http.MethodDelete, "/livez", "") }},
		"unsupported_media_type": {415, func(c client) answer { return c.post("/v1/accounts", `{}`, "Content-Type", "text/plain") }},
		"body_too_large":         {413, func(c client) answer { return c.post("/v1/accounts", strings.Repeat(" ", 65537)) }},
		"malformed_request":      {400, func(c client) answer { return c.sendRaw("\x16\x03\x01\r\n\r\n") }},
		"headers_too_large":      {431, func(c client) answer { return c.sendRaw("GET /" + strings.Repeat("x", 17_000) + " HTTP/1.1\r\n\r\n") }},
		"request_timeout": {408, func(c client) answer {
			c.server = slow
			return c.sendRaw("POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{")
		}},
		"idempotency_key_missing": {400, func(c client) answer { return c.post(deposits, `{"amount":1}`) }},
		"idempotency_key_invalid": {400, func(c client) answer { return c.post(deposits, `{"amount":1}`, "Idempotency-Key", "a b") }},
		"idempotency_key_reused":  {422, func(c client) answer { return c.post(deposits, `{"amount":2}`, "Idempotency-Key", "spent") }},
		"account_queue_full":      {429, func(c client) answer { return c.post(deposits, `{"amount":1}`, "Idempotency-Key", "next") }},
		"too_many_requests":       {429, nil}, // TestUserLimit
		"internal_error":          {500, nil}, // TestInternalError
		"unavailable":             {503, nil}, // TestUnavailable

		"http_version_not_supported": {505, nil}, // TestExport_NeedsChunks

		"last_event_id_invalid": {400, nil}, // TestEvents_Refused
		"not_acceptable":        {406, nil}, // the same
	}
	for code, test := range tests {
		if test.ask == nil {
			continue
		}
		t.Run(code, func(t *testing.T) {
			a := test.ask(c.in(t)).want(test.status)
			if got := decode[problemJSON](a).Code; got != code {
				t.Errorf("got %s", a)
			}
			if (test.status == http.StatusUnauthorized) != (a.header.Get("Www-Authenticate") == "Bearer") ||
				(test.status == http.StatusTooManyRequests) != (a.header.Get("Retry-After") == "1") ||
				(test.status == http.StatusMethodNotAllowed) != (a.header.Get("Allow") != "") {
				t.Errorf("headers of %s", a)
			}
		})
	}
	contract, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	known := contract.Enum("ProblemCode")
	slices.Sort(known)
	if tested := slices.Sorted(maps.Keys(tests)); !slices.Equal(tested, known) {
		t.Errorf("tested %q\nopenapi.yaml has %q", tested, known)
	}
}

// The answer to an internal error has no internal text; the log has all of it.
func TestInternalError(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(10)
	made := c.ask(account, "deposits", 1)
	c.get("/v1/users/me").want(http.StatusOK)
	for _, table := range []string{"jobs", "transactions", "accounts", "users"} {
		ledgertest.Exec(t, s.pool, `ALTER TABLE `+table+` RENAME TO gone_`+table)
	}
	asks := map[string]func(c client, id string) answer{
		"Deposit": func(c client, id string) answer {
			return c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k", "X-Request-Id", id)
		},
		"Batch": func(c client, id string) answer {
			return c.post(jobsOf(account, "jobs"), batchOf(c.t, "k"), "X-Request-Id", id)
		},
		"FindJob":      func(c client, id string) answer { return c.get("/v1/jobs?idempotency_key=k", "X-Request-Id", id) },
		"Job":          func(c client, id string) answer { return c.get("/v1/jobs/"+made.ID, "X-Request-Id", id) },
		"Jobs":         func(c client, id string) answer { return c.get(jobsOf(account, "jobs"), "X-Request-Id", id) },
		"Accounts":     func(c client, id string) answer { return c.get("/v1/accounts", "X-Request-Id", id) },
		"Account":      func(c client, id string) answer { return c.get("/v1/accounts/"+account.Number, "X-Request-Id", id) },
		"Open":         func(c client, id string) answer { return c.post("/v1/accounts", `{}`, "X-Request-Id", id) },
		"Transactions": func(c client, id string) answer { return c.get(jobsOf(account, "transactions"), "X-Request-Id", id) },
		"Transaction":  func(c client, id string) answer { return c.get(jobsOf(account, "transactions/1"), "X-Request-Id", id) },
		"Balance":      func(c client, id string) answer { return c.get(jobsOf(account, "balance"), "X-Request-Id", id) },
		"Export": func(c client, id string) answer {
			return c.get(jobsOf(account, "transactions"), "Accept", "text/csv", "X-Request-Id", id)
		},
		"Me":     func(c client, id string) answer { return c.get("/v1/users/me", "X-Request-Id", id) },
		"SignUp": func(c client, id string) answer { return c.post("/v1/users", annsCredentials, "X-Request-Id", id) },
		"LogIn":  func(c client, id string) answer { return c.post("/v1/sessions", annsCredentials, "X-Request-Id", id) },
	}
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := "internal-" + name
			a := ask(c.in(t), id).problem(http.StatusInternalServerError, "internal_error").wantNoHeader("Retry-After")
			for _, word := range []string{"relation", "SQLSTATE", "42P01", "does not exist", "accounts", "jobs"} {
				if strings.Contains(string(a.body), word) {
					t.Errorf("internal text: %s", a)
				}
			}
			if lines := s.log.lines(`"request_id":"`+id+`"`, "42P01"); len(lines) != 1 {
				t.Errorf("the log has it %d times, want once", len(lines))
			}
		})
	}
}

// promptly is requestTimeout and what a loaded machine adds: the hash of a password alone took it a
// second.
const promptly = 3 * requestTimeout

// Without Postgres every request that needs it is answered 503 promptly, and succeeds again when Postgres
// is back.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	postgres := testenv.PostgresServer(t)
	pool := openPool(t, postgres.URL())
	s := start(t, func(set *settings) { set.pool, set.timeout = pool, requestTimeout })
	c := s.user(t)
	account := c.open(10)
	if err := postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	deposit := func(c client) answer {
		return c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k")
	}
	asks := map[string]func(c client) answer{
		"Deposit":      deposit,
		"Job":          func(c client) answer { return c.get("/v1/jobs/" + uuid.Must(uuid.NewV7()).String()) },
		"Jobs":         func(c client) answer { return c.get(jobsOf(account, "jobs")) },
		"Accounts":     func(c client) answer { return c.get("/v1/accounts") },
		"Open":         func(c client) answer { return c.post("/v1/accounts", `{}`) },
		"Transactions": func(c client) answer { return c.get(jobsOf(account, "transactions")) },
		"Me":           func(c client) answer { return c.get("/v1/users/me") },
		"SignUp":       func(c client) answer { return c.post("/v1/users", annsCredentials) },
		"LogIn":        func(c client) answer { return c.post("/v1/sessions", annsCredentials) },
		"Refresh":      func(c client) answer { return c.post("/v1/sessions/refresh", refreshBody("x")) },
		"Revoke":       func(c client) answer { return c.post("/v1/sessions/revoke", refreshBody("x")) },
	}
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			started := time.Now()
			ask(c.in(t)).problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
			if took := time.Since(started); took > promptly {
				t.Errorf("took %v", took)
			}
		})
	}
	c.get("/livez").want(http.StatusOK)
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "a deposit after the return of Postgres", func() bool { return deposit(c).status == http.StatusAccepted })
	c.get("/v1/accounts/" + account.Number).want(http.StatusOK)
	if found := ledgertest.Check(t, pool); found.Jobs != 1 {
		t.Errorf("%d jobs, want 1", found.Jobs)
	}
}

// A Postgres that does not answer in time counts as down.
func TestUnavailable_WhenItTakesTooLong(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.timeout = requestTimeout })
	c := s.user(t)
	account := c.open(10)
	c.get("/v1/accounts").want(http.StatusOK)
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func(c client) answer{
		"Read": func(c client) answer { return c.get("/v1/accounts") },
		"Deposit": func(c client) answer {
			return c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k")
		},
	} {
		t.Run(name, func(t *testing.T) {
			started := time.Now()
			ask(c.in(t)).problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
			if took := time.Since(started); took > promptly {
				t.Errorf("took %v", took)
			}
		})
	}
}
