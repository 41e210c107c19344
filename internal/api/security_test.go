package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/openapi"
)

// The OWASP API Security Top 10 (2023) as attacks on a running API. Those that go route by route are
// made from openapi.yaml, so they cover a new route too:
//
//	API1  Broken object level authorization       TestSecurity_Another…
//	API2  Broken authentication                   TestSecurity_BadToken, TestSecurity_Log, the guesses of TestSecurity_LimitsAtOnce;
//	                                              limits_test.go, users_test.go; sessions_test.go and tokens_test.go of auth
//	API3  Broken object property level …          TestSecurity_UnknownMembers; the contract's schemas are closed
//	API4  Unrestricted resource consumption       TestSecurity_TooMuch, TestSecurity_LimitsAtOnce; receive_test.go, listener_test.go
//	API5  Broken function level authorization     TestSecurity_OtherMethods, TestSecurity_OtherPaths; server_test.go and token_test.go of ops
//	API6  Unrestricted access to business flows   TestSecurity_DoubleSpend, TestSecurity_OneKeyEverywhere, TestSecurity_LimitsAtOnce
//	API7  Server side request forgery             TestSecurity_NoRequestElsewhere, TestSecurity_HostileValues
//	API8  Security misconfiguration               TestSecurity_Origin; againstContract: the headers of every answer of every test
//	API9  Improper inventory management           TestOpenAPI_HasEveryRoute, TestSecurity_Inventory, TestSecurity_OtherPaths
//	API10 Unsafe consumption of APIs              of Redis alone: forged tasks, notifications and messages in the tests of queue, finished and
//	                                              limit; TestFraming_EveryRoute
//
// Requests that a proxy could read in another way: TestFraming_EveryRoute.

// operation is an operation of the contract.
type operation struct {
	method, path string
	isOpen       bool // needs no access token
	params       []openapi.Parameter
	body         map[string]any // the example of its request; nil where it takes no body
	members      []string       // that its request may have
	types        []string       // the media types of its 200
}

func (o operation) String() string { return o.method + " " + o.path }

// operations returns all of the contract's.
func operations(t *testing.T) (all []operation) {
	t.Helper()
	for _, o := range described(t) {
		if o.HasBody && o.Example == nil {
			t.Fatalf("%s %s: an example of its body is needed", o.Method, o.Path)
		}
		all = append(all, operation{
			method: o.Method, path: o.Path, isOpen: o.IsOpen, params: o.Parameters, body: o.Example, members: o.Members, types: o.Types,
		})
	}
	return all
}

// secured returns those that need an access token, and HEAD where GET does.
func secured(t *testing.T) (all []operation) {
	t.Helper()
	for _, o := range operations(t) {
		if o.isOpen {
			continue
		}
		all = append(all, o)
		if o.method == http.MethodGet && !slices.Contains(o.types, eventStream) {
			o.method = http.MethodHead
			all = append(all, o)
		}
	}
	return all
}

const eventStream = "text/event-stream"

// names are what a request names, by the parameters' names.
type names map[string]string

// nothing names what does not exist.
func nothing() names {
	return names{"number": "no-such-account", "id": uuid.Must(uuid.NewV7()).String(), "seq": "1", "idempotency_key": uuid.NewString()}
}

// request returns a valid request that names these.
func (o operation) request(t *testing.T, these names) probe {
	t.Helper()
	p := probe{method: o.method, target: o.path}
	for _, param := range o.params {
		switch name := param.Name; {
		case param.In == "path":
			if these[name] == "" {
				t.Fatalf("%s: say in nothing and in theirs what %q may be", o, name)
			}
			p.target = strings.ReplaceAll(p.target, "{"+name+"}", these[name])
		case name == headerKey:
			p.headers = append(p.headers, headerKey, uuid.NewString())
		case param.In == "query" && these[name] != "":
			p.target += "?" + url.Values{name: {these[name]}}.Encode()
		}
	}
	if o.body != nil {
		p.body = asJSON(t, o.body)
		p.headers = append(p.headers, "Content-Type", "application/json")
	}
	if slices.Contains(o.types, eventStream) {
		p.headers = append(p.headers, "Accept", eventStream)
	}
	return p
}

func asJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// variants are the request, and the same with each query parameter and for each media type.
func (o operation) variants(t *testing.T, these names) []probe {
	t.Helper()
	plain := o.request(t, these)
	all := []probe{plain}
	for _, param := range o.params {
		if param.In != "query" || strings.Contains(plain.target, "?") {
			continue
		}
		p := plain
		p.target += "?" + url.Values{param.Name: {param.Value}}.Encode()
		all = append(all, p)
	}
	for _, mediaType := range o.types {
		p := plain
		p.headers = append(slices.Clone(p.headers), "Accept", mediaType)
		all = append(all, p)
	}
	return all
}

// victim is a user with an account, jobs and a session, and what requests of the user name.
type victim struct {
	client
	account accountJSON
	theirs  names
}

// newVictim makes an account with two transactions and a queued job.
func newVictim(t *testing.T, s *server) victim {
	t.Helper()
	v := victim{client: s.user(t)}
	v.account = v.open(100)
	key := uuid.NewString()
	done := decode[jobJSON](v.post(jobsOf(v.account, "deposits"), `{"amount":5}`, headerKey, key).want(http.StatusAccepted))
	s.apply(t, done.ID)
	v.ask(v.account, "deposits", 7)
	v.theirs = names{"number": v.account.Number, "id": done.ID, "seq": "2", "idempotency_key": key}
	return v
}

// state is all that the database holds of the victim, apart from what reads note.
func (v victim) state() (state string) {
	v.t.Helper()
	const sql = `SELECT concat_ws('|', (SELECT users::text FROM users WHERE id = $1),
		(SELECT string_agg(concat_ws(',', id, number, balance, last_seq), ';' ORDER BY id) FROM accounts WHERE user_id = $1),
		(SELECT string_agg(j::text, ';' ORDER BY position) FROM job_states j JOIN accounts a ON a.id = j.account_id WHERE a.user_id = $1),
		(SELECT count(*) FROM transactions t JOIN accounts a ON a.id = t.account_id WHERE a.user_id = $1),
		(SELECT string_agg(sessions::text, ';' ORDER BY id) FROM sessions WHERE user_id = $1))`
	if err := v.server.pool.QueryRow(v.t.Context(), sql, v.userID).Scan(&state); err != nil {
		v.t.Fatal(err)
	}
	return state
}

// wantUnharmed fails the test unless the state is as it was before.
func (v victim) wantUnharmed(before string) {
	v.t.Helper()
	if now := v.state(); now != before {
		v.t.Errorf("the attacks have changed the victim's\n%s\nto\n%s", before, now)
	}
}

// jobsIn counts all jobs of the database.
func jobsIn(t *testing.T, s *server) (jobs int) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM jobs`).Scan(&jobs); err != nil {
		t.Fatal(err)
	}
	return jobs
}

// An operation is open exactly where its route is: the tests of this file take their list from the
// document, and the API takes it from routes.
func TestSecurity_OpenOperations(t *testing.T) {
	t.Parallel()
	routes, err := start(t).api.routes()
	if err != nil {
		t.Fatal(err)
	}
	var served, described []string
	for _, r := range routes {
		if r.open {
			served = append(served, r.method+" "+r.path)
		}
	}
	for _, o := range operations(t) {
		if o.isOpen {
			described = append(described, o.String())
		}
	}
	slices.Sort(served)
	slices.Sort(described)
	if !slices.Equal(served, described) || len(secured(t)) == 0 {
		t.Errorf("open routes: %q\nopen operations: %q", served, described)
	}
}

// Another user's account, job or transaction answers as one that does not exist, to the byte, on every
// route that names one, whatever else the request says, and nothing happens to it.
func TestSecurity_AnothersObjects(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, attacker := newVictim(t, s), s.user(t)
	attacker.open(0)
	before, none := v.state(), nothing()
	var controls []func()
	for _, o := range secured(t) {
		if !o.namesObject() {
			continue
		}
		fake := o.variants(t, none)
		for i, p := range o.variants(t, v.theirs) {
			name := fmt.Sprintf("%s %s", o, strings.Join(append([]string{p.target}, p.headers...), " "))
			t.Run(name, func(t *testing.T) {
				c := attacker.in(t)
				got, want := p.withID().send(c), fake[i].withID().send(c)
				got.sameAs(want)
				if strings.Contains(o.path, "{") && i == 0 {
					got.want(http.StatusNotFound)
				}
				wantNothingOf(got, v)
			})
		}
		controls = append(controls, func() { o.wantOwned(t, v) })
	}
	v.wantUnharmed(before)
	for _, control := range controls { // what the attacker asked for is there for its owner
		control()
	}
	if len(controls) == 0 {
		t.Error("no operation names an object")
	}
}

// namesObject reports whether a parameter names an object.
func (o operation) namesObject() bool {
	return slices.ContainsFunc(o.params, func(param openapi.Parameter) bool {
		_, names := nothing()[param.Name]
		return param.In == "path" || param.In == "query" && names
	})
}

func (p probe) withID() probe {
	p.headers = append(slices.Clone(p.headers), "X-Request-Id", "r")
	return p
}

// wantOwned sends the request as the owner. A stream is not waited for: it answers the attacker's
// request at once, and the owner's for long.
func (o operation) wantOwned(t *testing.T, v victim) {
	t.Helper()
	if slices.Contains(o.types, eventStream) {
		return
	}
	t.Run("Owner/"+o.String(), func(t *testing.T) {
		if a := o.request(t, v.theirs).send(v.in(t)); a.status >= http.StatusBadRequest {
			t.Errorf("got %s", a)
		}
	})
}

// wantNothingOf fails the test where the answer has what names the victim or what is the victim's.
func wantNothingOf(a answer, v victim) {
	a.t.Helper()
	for _, secret := range []string{v.userID.String(), v.account.Number, v.theirs["id"], v.theirs["idempotency_key"]} {
		if strings.Contains(a.String(), secret) {
			a.t.Errorf("the answer has the victim's %s: %s", secret, a)
		}
	}
}

// Lists, and whatever else names no object, show a caller nothing of another.
func TestSecurity_AnothersLists(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, attacker := newVictim(t, s), s.user(t)
	before := v.state()
	for _, o := range secured(t) {
		if o.namesObject() || o.method == http.MethodPut {
			continue
		}
		for _, p := range o.variants(t, names{}) {
			wantNothingOf(p.send(attacker), v)
		}
	}
	v.wantUnharmed(before)
}

// A key is its caller's own: with another user's, a request does what it says and is no repetition,
// and so are both users' repetitions their own.
func TestSecurity_AnothersKeys(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, attacker := newVictim(t, s), s.user(t)
	own := names{"number": attacker.open(0).Number}
	tested := 0
	for _, o := range operations(t) {
		if !slices.ContainsFunc(o.params, func(param openapi.Parameter) bool { return param.Name == headerKey }) {
			continue
		}
		tested++
		t.Run(o.String(), func(t *testing.T) {
			key := uuid.NewString()
			ask := func(c client, these names) answer {
				body := map[string]any{}
				for name, value := range o.body {
					if name != "number" { // of an account to open: made by the server
						body[name] = value
					}
				}
				p := o.request(t, these)
				return c.in(t).send(p.method, p.target, asJSON(t, body), "Content-Type", "application/json", headerKey, key)
			}
			theirs, ours := ask(v.client, v.theirs), ask(attacker, own)
			for _, first := range []answer{theirs, ours} {
				if first.status >= http.StatusMultipleChoices {
					t.Fatalf("got %s", first)
				}
				first.wantNoHeader(headerReplay)
			}
			wantNothingOf(ours, v)
			if location := ours.header.Get("Location"); location == theirs.header.Get("Location") {
				t.Errorf("both got %s", location)
			}
			for c, first := range map[*client]answer{&v.client: theirs, &attacker: ours} {
				these := own
				if c == &v.client {
					these = v.theirs
				}
				again := ask(*c, these)
				if again.wantHeader(headerReplay, "true"); again.header.Get("Location") != first.header.Get("Location") {
					t.Errorf("the repetition got %s, want %s", again.header.Get("Location"), first.header.Get("Location"))
				}
			}
		})
	}
	if tested == 0 {
		t.Error("no operation takes a key")
	}
}

// Another user's cursor goes on in no list.
func TestSecurity_AnothersCursors(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, attacker := newVictim(t, s), s.user(t)
	v.open(0) // so that the list of accounts has two
	own, tested := attacker.open(0), 0
	for _, o := range operations(t) {
		if !slices.ContainsFunc(o.params, func(param openapi.Parameter) bool { return param.Name == "cursor" }) {
			continue
		}
		tested++
		path := strings.ReplaceAll(o.path, "{number}", v.account.Number)
		page := decode[pageJSON[any]](v.get(path + "?limit=1").want(http.StatusOK))
		if page.NextCursor == nil {
			t.Fatalf("%s: the victim's list has one page", o)
		}
		after := "?cursor=" + url.QueryEscape(*page.NextCursor)
		for _, number := range []string{v.account.Number, own.Number} {
			a := attacker.get(strings.ReplaceAll(o.path, "{number}", number)+after).problem(http.StatusBadRequest, "invalid_cursor")
			wantNothingOf(a, v)
		}
		v.get(path + after).want(http.StatusOK)
	}
	if tested == 0 {
		t.Error("no operation takes a cursor")
	}
}

// Of withdrawals of all that an account has, asked for at once, one takes it. One key asked for at
// once takes it once.
func TestSecurity_DoubleSpend(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	for name, key := range map[string]func() string{"OwnKeys": uuid.NewString, "OneKey": func() string { return "one" }} {
		account := c.open(100)
		const clients = 16
		answers := make(chan answer, clients)
		for range clients {
			go func() {
				a, err := c.try(http.MethodPost, jobsOf(account, "withdrawals"), `{"amount":100}`,
					"Content-Type", "application/json", headerKey, key())
				if err != nil {
					t.Error(err)
				}
				answers <- a
			}()
		}
		var accepted []string
		for range clients {
			if a := <-answers; a.status == http.StatusAccepted {
				accepted = append(accepted, decode[jobJSON](a).ID)
			} else if a.status != http.StatusServiceUnavailable { // the key is under way
				t.Errorf("%s: got %s", name, a)
			}
		}
		slices.Sort(accepted)
		for _, id := range slices.Compact(accepted) {
			s.apply(t, id)
		}
		list := decode[pageJSON[jobJSON]](c.get(jobsOf(account, "jobs") + "?status=succeeded").want(http.StatusOK))
		if got := c.get("/v1/accounts/" + account.Number); len(list.Data) != 1 || decode[accountJSON](got).Balance != 0 {
			t.Errorf("%s: %d withdrawals succeeded, and the account is %s", name, len(list.Data), got)
		}
	}
	ledgertest.Check(t, s.pool)
}
