package api

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// noOutcome are the routes that show nothing of any account, and what they show instead.
var noOutcome = map[string]string{
	"POST /v1/users":            "the user whom the request itself commits",
	"GET /v1/users/me":          "the user's own sign-up",
	"PUT /v1/users/me/password": "the change that the request itself commits",
	"POST /v1/sessions":         "the session that the request itself commits",
	"POST /v1/sessions/refresh": "the session",
	"POST /v1/sessions/revoke":  "nothing",
	"GET /livez":                "the process",
	"GET /readyz":               "the process, and what it stands on",
	"GET /openapi.yaml":         "the contract",
	"GET /openapi.json":         "the contract",

	"GET /docs":                      "the page that shows the contract",
	"GET /docs/start.js":             "a file of that page",
	"GET /docs/swagger-ui-bundle.js": "a file of that page",
	"GET /docs/swagger-ui.css":       "a file of that page",
}

// outcomes are an account and what has become of its jobs, as requests name them.
type outcomes struct {
	account, long, closed accountJSON
	done, rejected        jobJSON
	waiting               jobJSON
	opened, asked, denied string // the keys of the account and of the two jobs
}

// posts are the requests that ask for something again, by route.
func (o outcomes) posts() map[string]probe {
	return map[string]probe{
		"/v1/accounts":                      {body: `{"initial_deposit":100}`, headers: []string{"Idempotency-Key", o.opened}},
		"/v1/accounts/{number}/deposits":    {body: `{"amount":5}`, headers: []string{"Idempotency-Key", o.asked}, writes: true}, // it may draw a position
		"/v1/accounts/{number}/withdrawals": {body: `{"amount":100000}`, headers: []string{"Idempotency-Key", o.denied}, writes: true},
		"/v1/accounts/{number}/jobs":        {body: o.batch(5)},
	}
}

// batch is a batch of the two jobs, the first with an amount.
func (o outcomes) batch(amount int) string {
	return fmt.Sprintf(`{"jobs":[{"type":"deposit","amount":%d,"idempotency_key":%q},{"type":"withdrawal","amount":100000,"idempotency_key":%q}]}`,
		amount, o.asked, o.denied)
}

// queries are what routes need beside their paths.
func (o outcomes) queries() map[string]string {
	return map[string]string{"/v1/jobs": "?idempotency_key=" + o.asked}
}

// probe is a request whose answer shows an outcome. One that always needs a confirmation,
// or writes, is not answered while the standby is away, however old what it shows.
type probe struct {
	method, target, body string
	headers              []string
	writes               bool
}

// probes are a request for each route of the contract, and for what changes its answer.
func (o outcomes) probes(t *testing.T) (all []probe) {
	t.Helper()
	fill := strings.NewReplacer("{number}", o.account.Number, "{id}", o.done.ID, "{seq}", "2")
	for _, route := range described(t) {
		if _, none := noOutcome[route.Method+" "+route.Path]; none {
			continue
		}
		var p probe
		if route.Method == http.MethodPost {
			p = o.posts()[route.Path]
		}
		p.method, p.target = route.Method, fill.Replace(route.Path)+o.queries()[route.Path]
		if route.Method != http.MethodGet && p.body == "" || strings.Contains(p.target, "{") {
			t.Errorf("%s %s: no request of this test would show an outcome", route.Method, route.Path)
		}
		p.writes = p.writes || strings.HasSuffix(route.Path, "/balance") // now, which closes the history
		all = append(all, p)
		if route.Method == http.MethodGet {
			p.method = http.MethodHead
			all = append(all, p)
		}
	}
	csv := []string{"Accept", "text/csv"}
	account := "/v1/accounts/" + o.account.Number
	return append(
		all,
		probe{method: http.MethodGet, target: account + "/balance?at=" + o.long.CreatedAt},
		probe{method: http.MethodGet, target: account + "/jobs?status=succeeded"},
		probe{method: http.MethodGet, target: account + "/jobs?status=rejected"},
		probe{method: http.MethodGet, target: account + "/jobs?status=queued", writes: true}, // it leaves those out
		probe{method: http.MethodGet, target: account + "/jobs?order=asc&limit=1"},
		probe{method: http.MethodGet, target: "/v1/jobs/" + o.rejected.ID},
		probe{method: http.MethodGet, target: "/v1/jobs?idempotency_key=" + o.denied},
		probe{method: http.MethodGet, target: "/v1/jobs?idempotency_key=" + uuid.NewString(), writes: true}, // it says that there is none
		probe{method: http.MethodPost, target: account + "/jobs", body: o.batch(6), writes: true},
		probe{method: http.MethodGet, target: account + "/transactions?type=deposit"},
		probe{method: http.MethodGet, target: account + "/events", headers: []string{"Last-Event-ID", "1"}},
		probe{method: http.MethodGet, target: account + "/transactions", headers: csv},
		probe{method: http.MethodHead, target: account + "/transactions", headers: csv},
		probe{method: http.MethodGet, target: account + "/transactions?type=withdrawal", headers: csv},
		probe{method: http.MethodGet, target: jobsOf(o.long, "transactions") + "?order=asc", headers: csv}, // on its second page
		probe{
			method: http.MethodPost, target: account + "/deposits", body: `{"amount":6}`,
			headers: []string{"Idempotency-Key", o.asked}, writes: true,
		},
		probe{
			method: http.MethodPost, target: jobsOf(o.closed, "deposits"), body: `{"amount":1}`,
			headers: []string{"Idempotency-Key", "late"}, writes: true,
		},
		probe{method: http.MethodPost, target: "/v1/accounts", body: `{"number":"` + o.account.Number + `"}`, writes: true},
	)
}

func (p probe) send(c client) (a answer) {
	c.t.Helper()
	headers := p.headers
	if p.body != "" {
		headers = append(slices.Clone(headers), "Content-Type", "application/json")
	}
	testenv.Eventually(c.t, "the user's export before to end", func() bool {
		a = c.send(p.method, p.target, p.body, headers...)
		return a.status != http.StatusTooManyRequests
	})
	return a
}

// each sends all of them, some at a time, and hands the answers over.
func each(t *testing.T, what string, c client, probes []probe, check func(probe, answer)) {
	t.Helper()
	t.Run(what, func(t *testing.T) {
		for _, p := range probes {
			t.Run(fmt.Sprintf("%s %s %s", p.method, p.target, strings.Join(p.headers, " ")), func(t *testing.T) {
				t.Parallel()
				check(p, p.send(c.in(t)))
			})
		}
	})
}

// No route shows what is applied and not yet durable, nor does a header. Every route shows it once
// it is durable, and what is known to be durable is shown without a wait.
func TestGate_EveryRoute(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	s := start(t, func(set *settings) { set.pool, set.timeout = openPool(t, server.URL()), requestTimeout })
	c := s.user(t)
	o := haveJobs(s, c)
	alone := c.open(0)
	c.get("/v1/accounts").want(http.StatusOK) // all up to here is confirmed

	back := testenv.AwayStandby(t, server.URL())
	for _, job := range []jobJSON{o.done, o.rejected} {
		s.applyUnflushed(t, job.ID)
	}
	s.applyUnflushed(t, decode[pageJSON[jobJSON]](c.get(jobsOf(o.long, "jobs")).want(http.StatusOK)).Data[0].ID)
	s.api.timeout = requestTimeout / 4 // each probe waits for so long
	each(t, "Unflushed", c, o.probes(t), func(p probe, a answer) {
		a.want(http.StatusServiceUnavailable).wantHeader("Retry-After", "1").wantNoHeader(headerReplay).
			wantNoHeader("Location").wantNoHeader("Link")
	})
	c.get("/v1/jobs/"+o.waiting.ID).want(http.StatusOK).wantHeader("Retry-After", "1")
	unknown := []string{"/v1/jobs/" + uuid.NewString(), "/v1/accounts/UNKNOWN-1", "/v1/accounts/" + o.account.Number + "/transactions/9999"}
	for _, path := range unknown { // the primary may be another server by now, and know it
		c.get(path).want(http.StatusServiceUnavailable)
	}
	for _, path := range []string{"/nowhere", "/v1/jobs/1", "/v1/accounts/A", "/v1/accounts/" + o.account.Number + "/transactions/first"} {
		c.get(path).want(http.StatusNotFound) // no primary has it
	}
	c.post("/v1/accounts/A/deposits", `{"amount":1}`, "Idempotency-Key", "nowhere").want(http.StatusNotFound)
	c.post("/v1/accounts/A/jobs", batchOf(t, "nowhere")).want(http.StatusNotFound)
	c.get("/v1/users/me").want(http.StatusOK)
	showsNoUnansweredJob(c, alone)

	s.api.timeout = patient
	back()
	for _, path := range unknown {
		c.get(path).want(http.StatusNotFound)
	}
	check := func(_ probe, a answer) {
		if a.status >= http.StatusInternalServerError {
			a.t.Errorf("got %s", a)
		}
	}
	each(t, "Durable", c, o.probes(t), func(p probe, a answer) {
		testenv.Eventually(a.t, "an answer: the accepts that waited for the standby end first", func() bool {
			if a.status == http.StatusServiceUnavailable {
				a = p.send(c.in(a.t))
			}
			return a.status != http.StatusServiceUnavailable
		})
		check(p, a)
	})
	back = testenv.AwayStandby(t, server.URL())
	each(t, "Old", c, slices.DeleteFunc(o.probes(t), func(p probe) bool { return p.writes }), check)
	back()
}

// showsNoUnansweredJob has an accept run out of time while the standby is away. Its commit ends the
// wait, and reads see a queued job that the standby does not have: no list shows it.
func showsNoUnansweredJob(c client, a accountJSON) {
	c.t.Helper()
	c.post(jobsOf(a, "deposits"), `{"amount":1}`, "Idempotency-Key", uuid.NewString()).want(http.StatusServiceUnavailable)
	testenv.Eventually(c.t, "the job to be there, and not shown", func() bool {
		answer := c.get(jobsOf(a, "jobs"))
		if answer.status == http.StatusOK && len(decode[pageJSON[jobJSON]](answer).Data) > 0 {
			c.t.Fatalf("a job that only the primary has is shown: %s", answer)
		}
		return answer.status == http.StatusServiceUnavailable
	})
}

// haveJobs accepts what the test applies later.
func haveJobs(s *server, c client) (o outcomes) {
	c.t.Helper()
	o.opened, o.asked, o.denied = uuid.NewString(), uuid.NewString(), uuid.NewString()
	o.account = decode[accountJSON](c.post("/v1/accounts", `{"initial_deposit":100}`, "Idempotency-Key", o.opened).want(http.StatusCreated))
	o.done = decode[jobJSON](c.post(jobsOf(o.account, "deposits"), `{"amount":5}`, "Idempotency-Key", o.asked).want(http.StatusAccepted))
	o.rejected = decode[jobJSON](c.post(jobsOf(o.account, "withdrawals"), `{"amount":100000}`, "Idempotency-Key", o.denied).want(http.StatusAccepted))
	o.waiting = c.ask(c.open(0), "deposits", 1)
	o.closed = c.open(0)
	ledgertest.SetStatus(c.t, s.pool, o.closed.Number, ledger.Closed)

	const entries = 1500 // more than a page of an export
	o.long = c.open(0)
	ledgertest.Unguarded(c.t, s.pool, fmt.Sprintf(`
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
		SELECT id, seq, 'deposit', 1, seq, timestamptz '2026-01-01' + seq * interval '1 s' FROM accounts, generate_series(1, %d) seq WHERE number = '%s';
		UPDATE accounts SET last_seq = %[1]d, balance = %[1]d, last_at = timestamptz '2026-01-01' + %[1]d * interval '1 s' WHERE number = '%[2]s'`,
		entries, o.long.Number))
	c.ask(o.long, "deposits", 1)
	return o
}

// applyUnflushed applies a job as all but the last of a batch are applied.
func (s *server) applyUnflushed(t *testing.T, id string) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // it is committed then
	if _, err := tx.Exec(t.Context(), `SET LOCAL synchronous_commit = off`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT apply_job($1, $2, 0)`, id, ledger.MaxAmount); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A route shows outcomes unless its line and this test say otherwise.
func TestGate_RoutesWithoutOutcome(t *testing.T) {
	t.Parallel()
	routes, err := start(t).api.routes()
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	for _, r := range routes {
		if r.noOutcome {
			declared[r.method+" "+r.path] = true
		}
	}
	if got, want := slices.Sorted(maps.Keys(declared)), slices.Sorted(maps.Keys(noOutcome)); !slices.Equal(got, want) {
		t.Errorf("routes without an outcome: %q, want %q", got, want)
	}
}
