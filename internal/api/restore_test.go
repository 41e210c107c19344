package api

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A restore under a running API gives the ids that it takes back to other accounts.
// What the API has seen of the first ones shows nothing of the others.
func TestReads_AfterARestore(t *testing.T) {
	t.Parallel()
	s, keep := restorable(t)
	first, second := s.user(t), s.user(t)
	restore := keep()

	account := first.open(50)
	s.apply(t, first.ask(account, "deposits", 1).ID)
	s.apply(t, first.ask(account, "deposits", 2).ID)
	targets := []string{"", "/balance", "/balance?at=2100-01-01T00:00:00Z", "/transactions", "/transactions?type=deposit", "/transactions/1", "/jobs", "/jobs?status=succeeded"}
	for _, target := range targets {
		first.get("/v1/accounts/" + account.Number + target).want(http.StatusOK)
	}
	readCSV(first.get(jobsOf(account, "transactions"), "Accept", "text/csv"))
	var pages []string // that go on in a list
	for _, list := range []string{"/transactions?limit=1", "/jobs?limit=1"} {
		link := first.get("/v1/accounts/" + account.Number + list).want(http.StatusOK).header.Get("Link")
		page, _, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		pages = append(pages, page)
	}

	restore()
	others := second.open(7000)
	s.apply(t, second.ask(others, "deposits", 100).ID)
	s.apply(t, second.ask(others, "deposits", 200).ID)
	if id := idOf(t, s.pool, others.Number); id != 1 {
		t.Fatalf("the second account has the id %d; the sequence was not set back", id)
	}
	for _, target := range targets {
		first.get("/v1/accounts/"+account.Number+target).problem(http.StatusNotFound, "account_not_found")
	}
	first.get(jobsOf(account, "transactions"), "Accept", "text/csv").problem(http.StatusNotFound, "account_not_found")
	first.send(http.MethodHead, jobsOf(account, "transactions"), "", "Accept", "text/csv").want(http.StatusNotFound)
	for _, page := range pages {
		first.get(page).problem(http.StatusNotFound, "account_not_found")
	}
	first.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k").problem(http.StatusNotFound, "account_not_found")

	// The number is free again, and the second user takes it.
	again := second.post("/v1/accounts", `{"number":"`+account.Number+`","initial_deposit":9000}`).want(http.StatusCreated)
	taken := decode[accountJSON](again)
	s.apply(t, second.ask(taken, "deposits", 1).ID)
	for _, target := range targets {
		first.get("/v1/accounts/"+account.Number+target).problem(http.StatusNotFound, "account_not_found")
	}
	for _, page := range pages {
		first.get(page).problem(http.StatusNotFound, "account_not_found")
		second.get(page).problem(http.StatusBadRequest, "invalid_cursor")
	}
}

// A restore takes back a sign-up: the user's tokens open nothing once the API forgets that it
// saw the session alive, 5 s later, and nothing of another user meanwhile. Then a second user
// has the first one's email.
func TestSessions_AfterARestore(t *testing.T) {
	t.Parallel()
	s, keep := restorable(t)
	before := s.user(t)
	restore := keep()
	first := s.anonymous(t)
	user, tokens := signUp(first), logIn(first)
	first.token = tokens.AccessToken
	spare := logIn(first)
	number := first.open(50).Number
	first.get("/v1/users/me").want(http.StatusOK)

	restore()
	second := s.anonymous(t)
	if other := signUp(second); other.ID == user.ID {
		t.Fatal("two users have one id")
	}
	second.token = logIn(second).AccessToken
	others := second.open(7000).Number
	before.get("/v1/users/me").want(http.StatusOK)

	first.get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated")
	first.post("/v1/accounts", `{}`).problem(http.StatusUnauthorized, "unauthenticated")
	for _, token := range []string{tokens.RefreshToken, spare.RefreshToken} {
		first.post("/v1/sessions/refresh", refreshBody(token)).problem(http.StatusUnauthorized, "invalid_refresh_token")
	}
	testenv.Eventually(t, "the session is forgotten", func() bool {
		list := first.get("/v1/accounts")
		if list.status == http.StatusOK && len(decode[pageJSON[accountJSON]](list).Data) > 0 {
			t.Error("a user whom the database does not know has accounts")
		}
		return list.status == http.StatusUnauthorized
	})
	for _, number := range []string{number, others} {
		first.get("/v1/accounts/"+number).problem(http.StatusUnauthorized, "unauthenticated")
	}
}

// restorable serves from a server of the test's own. keep copies its data, and restore puts
// the copy in its place, under the running API.
func restorable(t *testing.T) (s *server, keep func() (restore func())) {
	t.Helper()
	postgres := testenv.PostgresServer(t)
	pool := openPool(t, postgres.URL())
	data := filepath.Join(postgres.Dir(), "data")
	keep = func() func() {
		swap(t, postgres, func() { run(t, "cp", "-a", data, data+".copy") })
		pool.Reset()
		return func() {
			swap(t, postgres, func() {
				run(t, "rm", "-r", data)
				run(t, "mv", data+".copy", data)
			})
			pool.Reset()
		}
	}
	return start(t, func(set *settings) { set.pool = pool }), keep
}

// swap does something while the server is stopped.
func swap(t *testing.T, postgres *local.Postgres, do func()) {
	t.Helper()
	if err := postgres.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	do()
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, output)
	}
}

func idOf(t *testing.T, pool *pgxpool.Pool, number string) (id int64) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT id FROM accounts WHERE number = $1`, number).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}
