package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/test/testenv"
)

// atOnce sends the requests at the same time, each from a client of its own, and returns the statuses of
// the answers, sorted.
func atOnce(t *testing.T, send ...func(n int) (answer, error)) (statuses []int) {
	t.Helper()
	answers, begin := make(chan int, len(send)), make(chan struct{})
	for n, one := range send {
		go func() {
			<-begin
			a, err := one(n)
			if err != nil {
				t.Error(err)
			}
			answers <- a.status
		}()
	}
	close(begin)
	for range send {
		statuses = append(statuses, <-answers)
	}
	slices.Sort(statuses)
	return statuses
}

// passed counts the statuses that are none of the refusals.
func passed(statuses []int, refusals ...int) int {
	return len(slices.DeleteFunc(slices.Clone(statuses), func(status int) bool { return slices.Contains(refusals, status) }))
}

// A limit holds for requests that are sent at once: each is counted before the next one is let pass.
func TestSecurity_LimitsAtOnce(t *testing.T) {
	t.Parallel()
	const attempts = 12
	of, _ := limiters(t)
	s := start(t, func(set *settings) {
		set.accounts = 2
		set.limits = Limits{Emails: of("emails", 3), Pairs: of("pairs", 100), Proxies: loopback}
	})
	t.Run("Requests", func(t *testing.T) {
		t.Parallel()
		few := start(t, func(set *settings) { set.limits.Requests = of("requests", 4) })
		c := few.user(t)
		me := func(int) (answer, error) { return c.try(http.MethodGet, "/v1/users/me", "") }
		statuses := atOnce(t, slices.Repeat([]func(int) (answer, error){me}, attempts)...)
		if n := passed(statuses, http.StatusTooManyRequests); n > 4 {
			t.Errorf("%d requests passed, want 4: %v", n, statuses)
		}
	})
	t.Run("Accounts", func(t *testing.T) {
		t.Parallel()
		c, other := s.user(t), s.user(t)
		second := start(t, func(set *settings) { set.pool, set.accounts = s.pool, 2 }) // of another process
		open := func(n int) (answer, error) {
			c := c
			if n%2 == 0 {
				c.server = second
			}
			return c.try(http.MethodPost, "/v1/accounts", `{"initial_deposit":5}`, "Content-Type", "application/json")
		}
		statuses := atOnce(t, slices.Repeat([]func(int) (answer, error){open}, attempts)...)
		made := passed(statuses, http.StatusConflict, http.StatusServiceUnavailable)
		list := decode[pageJSON[accountJSON]](c.in(t).get("/v1/accounts").want(http.StatusOK))
		if made == 0 || made > 2 || len(list.Data) != made {
			t.Errorf("%d accounts were opened, and there are %d, want 2 at most: %v", made, len(list.Data), statuses)
		}
		other.in(t).open(0)
	})
	t.Run("Guesses", func(t *testing.T) {
		t.Parallel()
		c := s.anonymous(t)
		signUp(c)
		guess := func(n int) (answer, error) {
			return c.try(http.MethodPost, "/v1/sessions", fmt.Sprintf(`{"email":"ann@example.com","password":"guess number %d"}`, n),
				"Content-Type", "application/json", "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", n))
		}
		statuses := atOnce(t, slices.Repeat([]func(int) (answer, error){guess}, attempts)...)
		if n := passed(statuses, http.StatusTooManyRequests); n > 3 { // a busy machine answers 503 to a guess that it has no time to hash
			t.Errorf("%d guesses passed, want 3: %v", n, statuses)
		}
	})
	t.Run("SignUps", func(t *testing.T) {
		t.Parallel()
		c := s.anonymous(t)
		signUp := func(int) (answer, error) {
			return c.try(http.MethodPost, "/v1/users", `{"email":"bob@example.com","password":"correct horse"}`, "Content-Type", "application/json")
		}
		const few = 4 // each hashes the password
		statuses := atOnce(t, slices.Repeat([]func(int) (answer, error){signUp}, few)...)
		if n := passed(statuses, http.StatusConflict, http.StatusServiceUnavailable); n > 1 {
			t.Errorf("%d sign-ups of one email passed: %v", n, statuses)
		}
	})
}

// A key that is sent at once to every route that takes one has one effect.
func TestSecurity_OneKeyEverywhere(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	const rounds = 10
	for range rounds {
		key := uuid.NewString()
		post := func(target, body string) func(int) (answer, error) {
			return func(int) (answer, error) {
				return c.try(http.MethodPost, target, body, "Content-Type", "application/json", headerKey, key)
			}
		}
		batch := func(int) (answer, error) {
			return c.try(http.MethodPost, jobsOf(account, "jobs"), `{"jobs":[{"type":"deposit","amount":7,"idempotency_key":"`+key+`"}]}`,
				"Content-Type", "application/json")
		}
		statuses := atOnce(t, post("/v1/accounts", `{"initial_deposit":7}`), post(jobsOf(account, "deposits"), `{"amount":7}`), batch,
			post(jobsOf(account, "withdrawals"), `{"amount":7}`), post("/v1/accounts", `{"initial_deposit":8}`))
		const sql = `SELECT (SELECT count(*) FROM jobs WHERE idempotency_key = @key) + (SELECT count(*) FROM accounts WHERE open_key = @key)`
		var effects int
		if err := s.pool.QueryRow(t.Context(), sql, pgx.NamedArgs{"key": key}).Scan(&effects); err != nil || effects != 1 {
			t.Errorf("one key has %d effects, want 1; %v: %v", effects, err, statuses)
		}
		for _, status := range statuses {
			if status >= http.StatusBadRequest && status != http.StatusUnprocessableEntity && status != http.StatusServiceUnavailable {
				t.Errorf("statuses %v", statuses)
			}
		}
	}
	ledgertest.Check(t, s.pool)
}

// startReady starts an API whose /readyz names a dependency, as each does outside of tests.
func startReady(t *testing.T) *server {
	t.Helper()
	return start(t, func(set *settings) {
		set.checks = []ops.Check{{Name: "postgres", Required: true, Probe: func(context.Context) error { return nil }}}
	})
}

// No request makes the API connect to an address that the request names.
func TestSecurity_NoRequestElsewhere(t *testing.T) {
	t.Parallel()
	canary, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lured := make(chan struct{}) // closed when the canary has closed
	go func() {
		defer close(lured)
		for {
			conn, err := canary.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			t.Error("the API connects to an address that a request names")
		}
	}()
	s := startReady(t)
	v := newVictim(t, s)
	address := canary.Addr().String()
	for _, o := range operations(t) {
		if slices.Contains(o.types, eventStream) || strings.HasPrefix(o.path, "/docs") {
			continue
		}
		for _, lure := range []string{"http://" + address + "/x", "//" + address + "/x", address} {
			p := o.request(t, v.theirs)
			for _, name := range []string{
				"Origin", "Referer", "X-Forwarded-Host", "X-Forwarded-For", "Forwarded", "X-Original-URL", "X-Host", "Link", "X-Callback-URL",
				"X-Webhook-URL", "Destination", "Location", "Traceparent", "Tracestate", "Baggage", "X-B3-TraceId",
			} {
				p = p.with(name, lure)
			}
			p.send(v.client)
			for _, param := range o.params {
				if replaced, ok := o.replaced(t, v, param, lure); ok {
					replaced.send(v.client)
				}
			}
			for name := range o.body {
				o.set(t, v.theirs, name, asJSON(t, lure)).send(v.client)
			}
			if !o.isOpen { // sendRaw is for what is refused
				v.sendRaw(o.method + " http://" + address + o.fill(v.theirs) + " HTTP/1.1\r\nHost: " + address + "\r\nConnection: close\r\n\r\n")
			}
		}
	}
	if err := canary.Close(); err != nil {
		t.Error(err)
	}
	<-lured
}

// The API's log has no secret of a request, at its most talkative: no token, password or key, and nothing
// that a client says of its payments.
func TestSecurity_Log(t *testing.T) {
	t.Parallel()
	s := startReady(t)
	v := newVictim(t, s)
	secrets := map[string]string{v.token: "the access token"}
	var ids []string
	for _, o := range operations(t) {
		if strings.HasPrefix(o.path, "/docs") {
			continue
		}
		for i, p := range append(o.variants(t, v.theirs), o.request(t, nothing())) {
			if slices.Contains(o.types, eventStream) && i > 0 {
				continue
			}
			id := uuid.NewString()
			ids = append(ids, id)
			p.with("X-Request-Id", id).with("Referer", "https://a-secret-page.example").send(v.client)
			if key := slices.Index(p.headers, headerKey); key >= 0 {
				secrets[p.headers[key+1]] = "a key"
			}
		}
		secretsIn(o.body, secrets)
	}
	secrets["a-secret-page"] = "the page"
	for _, id := range ids {
		testenv.Eventually(t, "the line of each request", func() bool { return len(s.log.lines(id)) > 0 }) // after its answer
	}
	for secret, what := range secrets {
		for _, line := range s.log.lines(secret) {
			t.Errorf("the log has %s %q: %s", what, secret, line)
		}
	}
}

// secretsIn adds the texts of a body that are no log's.
func secretsIn(value any, secrets map[string]string) {
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			secretsIn(item, secrets)
		}
	case map[string]any:
		for name, member := range value {
			text, isText := member.(string)
			isSecret := isText && (strings.Contains(name, "password") || slices.Contains([]string{"refresh_token", "description", "email", fieldKey}, name))
			if isSecret && len(text) > 3 {
				secrets[text] = "the " + name
			}
			secretsIn(member, secrets)
		}
	}
}
