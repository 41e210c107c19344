package api

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/local"
	"github.com/passbook/passbook/internal/testenv"
)

// A restore under a running API gives the ids that it takes back to other accounts.
// What the API has seen of the first ones shows nothing of the others.
func TestReads_AfterARestore(t *testing.T) {
	t.Parallel()
	postgres := testenv.PostgresServer(t)
	pool, err := pgxpool.New(t.Context(), postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := start(t, func(set *settings) { set.pool = pool })
	first, second := s.user(t), s.user(t)
	data := filepath.Join(postgres.Dir(), "data")
	swap(t, postgres, func() { run(t, "cp", "-a", data, data+".copy") })
	pool.Reset()

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

	swap(t, postgres, func() {
		run(t, "rm", "-r", data)
		run(t, "mv", data+".copy", data)
	})
	pool.Reset()
	others := second.open(7000)
	s.apply(t, second.ask(others, "deposits", 100).ID)
	s.apply(t, second.ask(others, "deposits", 200).ID)
	if id := idOf(t, pool, others.Number); id != 1 {
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
