package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/limit"
	"github.com/passbook/passbook/internal/test/testenv"
)

// limiters make Limiters on a Redis of the test's own, for which no time passes.
func limiters(t *testing.T) (of func(name string, most int) *limit.Limiter, client redis.UniversalClient) {
	t.Helper()
	opt, err := redis.ParseURL(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	client = redis.NewClient(opt)
	t.Cleanup(func() { _ = client.Close() })
	now := time.Now()
	return func(name string, most int) *limit.Limiter {
		return limit.New(limit.Config{
			Quota: limit.Quota{Most: most, Per: time.Hour}, Redis: client, Prefix: "test", Name: name,
			Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
		})
	}, client
}

// refused returns how many requests a limit has refused.
func (s *server) refused(reason string) int {
	var read dto.Metric
	if err := s.api.metrics.refusals.WithLabelValues(reason).Write(&read); err != nil {
		return -1
	}
	return int(read.GetCounter().GetValue())
}

func TestUserLimit(t *testing.T) {
	t.Parallel()
	of, _ := limiters(t)
	s := start(t, func(set *settings) { set.limits.Requests = of("requests", 4) })
	c, other := s.user(t), s.user(t)
	account := decode[accountJSON](c.post("/v1/accounts", "{}").want(http.StatusCreated).
		wantHeader(headerPolicy, `"user";q=4;w=3600`).wantHeader(headerLimit, `"user";r=3;t=900`))
	c.get("/v1/jobs/"+uuid.NewString()).problem(http.StatusNotFound, "job_not_found").wantHeader(headerLimit, `"user";r=2;t=1800`)
	c.get("/v1/users/me?x=1").problem(http.StatusBadRequest, "invalid_parameter", "x unknown_parameter").wantHeader(headerLimit, `"user";r=1;t=2700`)
	c.get("/v1/users/me").want(http.StatusOK).wantHeader(headerLimit, `"user";r=0;t=3600`)

	key := uuid.NewString()
	for range 3 {
		c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", key).problem(http.StatusTooManyRequests, "too_many_requests").
			wantHeader("Retry-After", "900").wantHeader(headerPolicy, `"user";q=4;w=3600`).wantHeader(headerLimit, `"user";r=0;t=3600`)
	}
	if got := s.refused(refusedUser); got != 3 {
		t.Errorf("the metric says %d, want 3", got)
	}
	other.get("/v1/users/me").want(http.StatusOK).wantHeader(headerLimit, `"user";r=3;t=900`)
	s.anonymous(t).get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated").wantNoHeader(headerLimit).wantNoHeader(headerPolicy)

	// A request that is refused spends no key.
	unlimited := start(t, func(set *settings) { set.pool = s.pool })
	c.server = unlimited
	c.post(jobsOf(account, "deposits"), `{"amount":2}`, "Idempotency-Key", key).want(http.StatusAccepted).
		wantNoHeader(headerReplay).wantNoHeader(headerLimit).wantNoHeader(headerPolicy)
}

// Each job of a batch counts as a request. A refused batch makes no job and counts as one request. A
// batch larger than the quota takes all of it.
func TestUserLimit_Batch(t *testing.T) {
	t.Parallel()
	of, _ := limiters(t)
	s := start(t, func(set *settings) { set.limits.Requests = of("requests", 10) })
	c := s.user(t)
	account := c.open(0)
	target := jobsOf(account, "jobs")
	c.post(target, batchOf(t, "a", "b", "c", "d", "e")).want(http.StatusAccepted).wantHeader(headerLimit, `"user";r=4;t=2160`)
	refused := batchOf(t, "f", "g", "h", "i", "j", "k")
	c.post(target, refused).problem(http.StatusTooManyRequests, "too_many_requests").
		wantHeader("Retry-After", "1080").wantHeader(headerPolicy, `"user";q=10;w=3600`).wantHeader(headerLimit, `"user";r=3;t=2520`)
	if got := s.refused(refusedUser); got != 1 {
		t.Errorf("the metric says %d, want 1", got)
	}
	c.post(target, batchOf(t, "f", "f", "h")).problem(http.StatusUnprocessableEntity, "invalid_request", "/jobs/1/idempotency_key repeated_key").
		wantHeader(headerLimit, `"user";r=2;t=2880`)
	c.post(target, batchOf(t, "l")).want(http.StatusAccepted).wantHeader(headerLimit, `"user";r=1;t=3240`)

	small := of("small", 3)
	c.server = start(t, func(set *settings) { set.pool, set.limits.Requests = s.pool, small })
	keys := manyKeys(job.MaxBatchJobs)
	c.post(target, batchOf(t, keys...)).want(http.StatusAccepted).wantNoHeader(headerReplay).wantHeader(headerLimit, `"user";r=0;t=3600`)
	c.server = start(t, func(set *settings) { set.pool = s.pool })
	c.post(target, refused).want(http.StatusAccepted).wantNoHeader(headerReplay).wantNoHeader(headerLimit)
	if jobs := walk[jobJSON](c, target+"?limit=100", 100); len(jobs) != 6+job.MaxBatchJobs+6 {
		t.Errorf("%d jobs", len(jobs))
	}
}

// Every route that needs an access token counts its requests, and says so in each answer.
func TestUserLimit_EveryRoute(t *testing.T) {
	t.Parallel()
	const plenty = 10_000
	of, _ := limiters(t)
	s := start(t, func(set *settings) { set.limits.Requests = of("requests", plenty) })
	c := s.user(t)
	o := haveJobs(s, c)
	probes := append(o.probes(t), probe{method: http.MethodGet, target: "/v1/users/me"})
	send := func(p probe) answer {
		headers := p.headers
		if p.body != "" {
			headers = append([]string{"Content-Type", "application/json"}, headers...)
		}
		return c.send(p.method, p.target, p.body, headers...)
	}
	for _, p := range probes {
		if a := send(p); a.header.Get(headerLimit) == "" || a.header.Get(headerPolicy) != fmt.Sprintf(`"user";q=%d;w=3600`, plenty) {
			t.Errorf("%s %s: no limit in %s", p.method, p.target, a)
		}
	}
	for s.api.cfg.Limits.Requests.Take(string(c.userID[:])).Allowed { //nolint:revive // until all are taken
	}
	for _, p := range probes {
		if a := send(p); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" || a.header.Get(headerLimit) == "" {
			t.Errorf("%s %s: %s, want 429", p.method, p.target, a)
		}
	}
}

// logInFrom tries to log in through a proxy.
func (c client) logInFrom(address, email, password string) answer {
	c.t.Helper()
	return c.post("/v1/sessions", fmt.Sprintf(`{"email":%q,"password":%q}`, email, password), "X-Forwarded-For", address)
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

// A guesser is stopped, also at the right password, and learns nothing about who has an email. The owner
// logs in from where he did before, and refreshes his session.
func TestLogInLimit_Email(t *testing.T) {
	t.Parallel()
	of, client := limiters(t)
	s := start(t, func(set *settings) {
		set.limits = Limits{
			Emails: of("emails", 3), Pairs: of("pairs", 2), Known: limit.NewKnown(client, "test", "known"), Proxies: loopback,
		}
	})
	c := s.anonymous(t)
	signUp(c)
	const email, right, home = "Ann@Example.com", "correct horse", "192.0.2.1"
	tokens := decode[tokensJSON](c.logInFrom(home, email, right).want(http.StatusCreated))
	for n, cased := range []string{"ANN@example.com", "ann@example.com"} {
		c.logInFrom(fmt.Sprintf("198.51.100.%d", n), cased, "wrong horse").problem(http.StatusUnauthorized, "invalid_credentials")
	}
	guessed := c.logInFrom("203.0.113.1", email, right)
	guessed.problem(http.StatusTooManyRequests, "too_many_requests").wantHeader("Retry-After", "1200")
	if got := s.refused(refusedEmail); got != 1 {
		t.Errorf("the metric says %d, want 1", got)
	}
	for range 3 {
		c.logInFrom("203.0.113.1", "bob@example.com", right).problem(http.StatusUnauthorized, "invalid_credentials")
	}
	c.logInFrom("203.0.113.1", "bob@example.com", right).problem(http.StatusTooManyRequests, "too_many_requests")

	c.logInFrom(home, email, right).want(http.StatusCreated)
	c.post("/v1/sessions/refresh", refreshBody(tokens.RefreshToken)).want(http.StatusCreated)
	c.logInFrom(home, email, "wrong horse").problem(http.StatusUnauthorized, "invalid_credentials")
	c.logInFrom(home, email, right).problem(http.StatusTooManyRequests, "too_many_requests")
}

// A guesser does not lock out an owner who has not logged in from his address, but signed up, refreshed a
// session or changed his password there. The owner changes his password from anywhere.
func TestLogInLimit_Remembers(t *testing.T) {
	t.Parallel()
	of, client := limiters(t)
	s := start(t, func(set *settings) {
		set.limits = Limits{
			Emails: of("emails", 2), Pairs: of("pairs", 1), Changes: of("changes", 2),
			Known: limit.NewKnown(client, "test", "known"), Proxies: loopback,
		}
	})
	c := s.anonymous(t)
	const email, first, second = "ann@example.com", "correct horse", "battery staple"
	c.post("/v1/users", annsCredentials, "X-Forwarded-For", "192.0.2.1").want(http.StatusCreated)
	tokens := decode[tokensJSON](c.logInFrom("192.0.2.2", email, first).want(http.StatusCreated))
	c.logInFrom("198.51.100.1", email, "wrong horse").problem(http.StatusUnauthorized, "invalid_credentials")
	c.logInFrom("198.51.100.1", email, first).problem(http.StatusTooManyRequests, "too_many_requests")

	c.logInFrom("192.0.2.1", email, first).want(http.StatusCreated)
	c.post("/v1/sessions/refresh", refreshBody(tokens.RefreshToken), "X-Forwarded-For", "192.0.2.3").want(http.StatusCreated)
	c.token = decode[tokensJSON](c.logInFrom("192.0.2.3", email, first).want(http.StatusCreated)).AccessToken
	change := func(from, current string) answer {
		t.Helper()
		return c.send(http.MethodPut, "/v1/users/me/password", fmt.Sprintf(`{"current_password":%q,"new_password":%q}`, current, second),
			"Content-Type", "application/json", "X-Forwarded-For", from)
	}
	change("192.0.2.4", "wrong horse").problem(http.StatusUnauthorized, "invalid_credentials")
	change("192.0.2.5", first).want(http.StatusNoContent)
	c.token = ""
	c.logInFrom("192.0.2.4", email, second).problem(http.StatusTooManyRequests, "too_many_requests") // a wrong password proves nothing
	c.token = decode[tokensJSON](c.logInFrom("192.0.2.5", email, second).want(http.StatusCreated)).AccessToken
	change("192.0.2.5", second).problem(http.StatusTooManyRequests, "too_many_requests").wantHeader("Retry-After", "1800")
	if got := s.refused(refusedChange); got != 1 {
		t.Errorf("the metric says %d, want 1", got)
	}
}

// Log-ins and sign-ups count for the address of the client. Only a trusted proxy says which that is.
func TestLogInLimit_Address(t *testing.T) {
	t.Parallel()
	of, _ := limiters(t)
	tests := map[string]struct {
		proxies       []netip.Prefix
		first, second string // X-Forwarded-For
		same          bool   // address
	}{
		"NoProxy":         {nil, "192.0.2.1", "192.0.2.2", true},
		"Proxy":           {loopback, "192.0.2.1", "192.0.2.2", false},
		"Proxy/Same":      {loopback, "192.0.2.1", "192.0.2.1", true},
		"Proxy/Forged":    {loopback, "192.0.2.1, 192.0.2.9", "192.0.2.2, 192.0.2.9", true},
		"Proxy/None":      {loopback, "", "", true},
		"Proxy/Malformed": {loopback, "unknown", "192.0.2.2, unknown", true},
		"Proxy/Chain":     {append([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, loopback...), "192.0.2.1, 10.0.0.1", "192.0.2.2,10.0.0.1", false},
		"Proxy/All":       {append([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, loopback...), "10.0.0.1", "10.0.0.2", false},
		"Proxy/IPv6":      {loopback, "2001:db8::1", "2001:db8:0:1::1", false},
		"Proxy/IPv6/Net":  {loopback, "2001:db8::1", "2001:db8::2", true},
		"Proxy/Port":      {loopback, "192.0.2.1:5678", "192.0.2.2:5678", false},
		"Proxy/Port/Same": {loopback, "192.0.2.1:5678", "192.0.2.1:80", true},
		"Proxy/Port/IPv6": {loopback, "[2001:db8::1]:80", "[2001:db8:0:1::1]:80", false},
		"Proxy/4In6":      {loopback, "::ffff:192.0.2.1", "192.0.2.1", true},
	}
	n := 0
	for name, test := range tests {
		n++
		limits := Limits{Addresses: of(fmt.Sprint("addresses", n), 1), Proxies: test.proxies}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(set *settings) { set.limits = limits })
			c := s.anonymous(t)
			c.post("/v1/users", annsCredentials, "X-Forwarded-For", test.first).want(http.StatusCreated)
			second := c.logInFrom(test.second, "ann@example.com", "correct horse")
			if !test.same {
				second.want(http.StatusCreated)
				return
			}
			second.problem(http.StatusTooManyRequests, "too_many_requests").wantHeader("Retry-After", "3600")
			c.post("/v1/users", strings.Replace(annsCredentials, "Ann", "Bob", 1), "X-Forwarded-For", test.second).
				problem(http.StatusTooManyRequests, "too_many_requests")
			if got := s.refused(refusedAddress); got != 2 {
				t.Errorf("the metric says %d, want 2", got)
			}
		})
	}
}

// An address that sends bad refresh tokens is stopped before Postgres looks for the next one. Good tokens
// count for nothing.
func TestTokenLimit(t *testing.T) {
	t.Parallel()
	of, _ := limiters(t)
	s := start(t, func(set *settings) {
		set.limits = Limits{BadTokens: of("tokens", 2), Proxies: loopback}
	})
	c := s.anonymous(t)
	signUp(c)
	const flood, home = "192.0.2.1", "192.0.2.2"
	send := func(action, from, token string) answer {
		t.Helper()
		return c.post("/v1/sessions/"+action, refreshBody(token), "X-Forwarded-For", from)
	}
	token := logIn(c).RefreshToken
	for range 3 {
		token = decode[tokensJSON](send("refresh", flood, token).want(http.StatusCreated)).RefreshToken
	}
	send("refresh", flood, "no-such-token").problem(http.StatusUnauthorized, "invalid_refresh_token")
	send("revoke", flood, "no-such-token").want(http.StatusNoContent)

	send("refresh", flood, "no-such-token").problem(http.StatusTooManyRequests, "too_many_requests")

	release := hold(t, s, "refresh_tokens")
	for _, action := range []string{"refresh", "revoke"} {
		send(action, flood, token).problem(http.StatusTooManyRequests, "too_many_requests").wantHeader("Retry-After", "1800")
	}
	release()
	if got := s.refused(refusedToken); got != 3 {
		t.Errorf("the metric says %d, want 3", got)
	}
	token = decode[tokensJSON](send("refresh", home, token).want(http.StatusCreated)).RefreshToken
	c.logInFrom(flood, "ann@example.com", "correct horse").want(http.StatusCreated)
	send("revoke", home, token).want(http.StatusNoContent)
}

// Where Redis does not answer, the limits hold in each API, and requests don't wait for it. Each address
// then may be the owner's: beyond the quota of the email it has one of its own.
func TestLimits_WithoutRedis(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	of := func(name string) *limit.Limiter {
		return limit.New(limit.Config{
			Quota: limit.Quota{Most: 2, Per: time.Hour}, Redis: client, Prefix: "test", Name: name, Log: slog.New(slog.DiscardHandler),
		})
	}
	s := start(t, func(set *settings) {
		set.limits = Limits{Requests: of("requests"), Emails: of("emails"), Pairs: of("pairs"), Known: limit.NewKnown(client, "test", "known")}
	})
	c := s.anonymous(t)
	signUp(c)
	for range 3 {
		logIn(c)
	}
	c.token = logIn(c).AccessToken
	c.post("/v1/sessions", annsCredentials).problem(http.StatusTooManyRequests, "too_many_requests")
	for range 2 {
		c.get("/v1/users/me").want(http.StatusOK)
	}
	c.get("/v1/users/me").problem(http.StatusTooManyRequests, "too_many_requests")
}

// hold locks a table until the returned function is called.
func hold(t *testing.T, s *server, table string) (release func()) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = tx.Rollback(t.Context()) })
	t.Cleanup(release)
	return release
}

// A request beyond those in flight is refused at once. Health is not, nor are deposits.
func TestInFlight(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.edit = func(a *API) { a.callers.most, a.guests.most = 1, 1 } })
	c := s.user(t)
	account := c.open(0)
	release := hold(t, s, "transactions")
	first := make(chan answer, 1)
	go func() {
		a, _ := c.try(http.MethodGet, jobsOf(account, "transactions"), "")
		first <- a
	}()
	testenv.Eventually(t, "the first request to be in flight", func() bool { return s.api.callers.taken.Load() == 1 })
	c.get("/v1/users/me").problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
	if got := s.refused(refusedInFlight); got != 1 {
		t.Errorf("the metric says %d, want 1", got)
	}
	c.get("/livez").want(http.StatusOK)
	c.ask(account, "deposits", 1)
	s.anonymous(t).post("/v1/sessions", annsCredentials).problem(http.StatusUnauthorized, "invalid_credentials")
	release()
	if a := <-first; a.status != http.StatusOK {
		t.Errorf("the first request: %s", a)
	}
	c.get("/v1/users/me").want(http.StatusOK)
	if taken := s.api.callers.taken.Load() + s.api.guests.taken.Load(); taken != 0 {
		t.Errorf("%d requests are still in flight", taken)
	}
}

// One user can take only some of the slots; the others remain for other users. Deposits need no slot.
func TestInFlight_User(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.edit = func(a *API) { a.users.most = 1 } })
	c, other := s.user(t), s.user(t)
	account := c.open(0)
	release := hold(t, s, "transactions")
	first := make(chan answer, 1)
	go func() {
		a, _ := c.try(http.MethodGet, jobsOf(account, "transactions"), "")
		first <- a
	}()
	testenv.Eventually(t, "the first request to have its user's slot", func() bool { return s.usersInFlight() == 1 })
	c.get("/v1/users/me").problem(http.StatusTooManyRequests, "too_many_requests").wantHeader("Retry-After", "1")
	if got := s.refused(refusedUserInFlight); got != 1 {
		t.Errorf("the metric says %d, want 1", got)
	}
	other.get("/v1/users/me").want(http.StatusOK)
	c.ask(account, "deposits", 1)
	release()
	if a := <-first; a.status != http.StatusOK {
		t.Errorf("the first request: %s", a)
	}
	c.get("/v1/users/me").want(http.StatusOK)
	if taken := s.usersInFlight(); taken != 0 {
		t.Errorf("%d users still have requests in flight", taken)
	}
}

// usersInFlight returns how many users have requests in flight.
func (s *server) usersInFlight() int {
	s.api.users.mu.Lock()
	defer s.api.users.mu.Unlock()
	return len(s.api.users.taken)
}

// A flood of log-ins takes no slot of the refreshes. A flood of refreshes takes no slot of the log-ins.
func TestInFlight_Refreshes(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.anonymous(t)
	signUp(c)
	tokens := logIn(c)
	s.api.guests.taken.Store(maxGuestsInFlight)
	c.post("/v1/sessions", annsCredentials).problem(http.StatusServiceUnavailable, "unavailable")
	tokens = decode[tokensJSON](c.post("/v1/sessions/refresh", refreshBody(tokens.RefreshToken)).want(http.StatusCreated))
	s.api.guests.taken.Store(0)
	s.api.refreshes.taken.Store(maxRefreshesInFlight)
	for _, action := range []string{"refresh", "revoke"} {
		c.post("/v1/sessions/"+action, refreshBody(tokens.RefreshToken)).problem(http.StatusServiceUnavailable, "unavailable")
	}
	logIn(c)
}

// A refused take does not count as taken, so it causes no refusal while a slot is free.
func TestSlots_Refused(t *testing.T) {
	t.Parallel()
	s := &slots{most: 1}
	s.take()
	var taking sync.WaitGroup
	for range 4 {
		taking.Go(func() {
			for range 100_000 {
				if s.take() {
					t.Error("a slot more than there are")
				}
				if taken := s.taken.Load(); taken != 1 {
					t.Errorf("%d slots are taken, want 1", taken)
					return
				}
			}
		})
	}
	taking.Wait()
}

// While deposits would wait too long to be accepted, they are refused at once, and nothing happens for
// them. Other requests are answered.
func TestShed(t *testing.T) {
	t.Parallel()
	var overloaded atomic.Bool
	s := start(t, func(set *settings) { set.edit = func(a *API) { a.overloaded = overloaded.Load } })
	c := s.user(t)
	account := c.open(0)
	overloaded.Store(true)
	key := uuid.NewString()
	for _, kind := range []string{"deposits", "withdrawals"} {
		refused := c.post(jobsOf(account, kind), `{"amount":1}`, "Idempotency-Key", key, "X-Request-Id", "mine").
			problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1").wantHeader("X-Request-Id", "mine").wantCloses(false)
		if !strings.Contains(string(refused.body), "Nothing happened") {
			t.Errorf("got %s", refused)
		}
	}
	if got := s.refused(refusedAccept); got != 2 {
		t.Errorf("the metric says %d, want 2", got)
	}
	c.get(jobsOf(account, "jobs")).want(http.StatusOK)
	c.open(0)
	overloaded.Store(false)
	c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", key).want(http.StatusAccepted).wantNoHeader(headerReplay)
}

func TestAccountLimit(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.accounts = 2 })
	c := s.user(t)
	first := c.post("/v1/accounts", `{"initial_deposit":5}`, "Idempotency-Key", "first").want(http.StatusCreated)
	c.open(0)
	for range 2 {
		c.post("/v1/accounts", `{}`, "Idempotency-Key", "third").problem(http.StatusConflict, "account_limit_reached")
		c.post("/v1/accounts", `{}`).problem(http.StatusConflict, "account_limit_reached")
	}
	again := c.post("/v1/accounts", `{"initial_deposit":5}`, "Idempotency-Key", "first").want(http.StatusCreated).wantHeader(headerReplay, "true")
	if string(again.body) != string(first.body) {
		t.Errorf("got %s, want %s", again, first)
	}
	s.user(t).open(0)
	if got := s.refused(refusedAccount); got != 4 {
		t.Errorf("the metric says %d, want 4", got)
	}
	var accounts int
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM accounts`).Scan(&accounts); err != nil || accounts != 3 {
		t.Errorf("there are %d accounts, want 3; %v", accounts, err)
	}
}
