package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

// What a client sees of an account that an operator freezes, opens again and closes.
func TestAccountStatus(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(100)
	becomes := func(status ledger.AccountStatus) {
		t.Helper()
		ledgertest.SetStatus(t, s.pool, account.Number, status)
		for _, a := range []answer{c.get("/v1/accounts/" + account.Number), c.get("/v1/accounts")} {
			if a.want(http.StatusOK); !strings.Contains(string(a.body), `"status":"`+string(status)+`"`) {
				t.Errorf("want %s: %s", status, a)
			}
		}
	}
	ends := func(job jobJSON, want string) {
		t.Helper()
		s.apply(t, job.ID)
		got := decode[jobJSON](c.get("/v1/jobs/" + job.ID).want(http.StatusOK))
		if got.Status != want && (got.Failure == nil || got.Failure.Code != want) {
			t.Errorf("the job is %+v, want %s", got, want)
		}
	}
	becomes(ledger.Open)
	becomes(ledger.Frozen)
	frozen := c.ask(account, "deposits", 5)
	ends(frozen, ledger.AccountIsFrozen)
	becomes(ledger.Open)
	ends(c.ask(account, "withdrawals", 5), "succeeded")
	key := uuid.NewString()
	queued := decode[jobJSON](c.post(jobsOf(account, "deposits"), `{"amount":7}`, "Idempotency-Key", key).want(http.StatusAccepted))
	becomes(ledger.Closed)
	again := decode[jobJSON](c.post(jobsOf(account, "deposits"), `{"amount":7}`, "Idempotency-Key", key).
		want(http.StatusAccepted).wantHeader(headerReplay, "true"))
	if again.ID != queued.ID {
		t.Errorf("the key answers with %s, want %s", again.ID, queued.ID)
	}
	ends(queued, ledger.AccountIsClosed)
	c.post(jobsOf(account, "deposits"), `{"amount":7}`, "Idempotency-Key", key).want(http.StatusOK).wantHeader(headerReplay, "true")
	for _, kind := range []string{"deposits", "withdrawals"} {
		c.post(jobsOf(account, kind), `{"amount":1}`, "Idempotency-Key", uuid.NewString()).problem(http.StatusConflict, "account_closed")
	}
	c.post(jobsOf(account, "jobs"), batchOf(t, "late")).problem(http.StatusConflict, "account_closed")
	c.post(jobsOf(account, "deposits"), `{"amount":8}`, "Idempotency-Key", key).problem(http.StatusUnprocessableEntity, "idempotency_key_reused")
	for _, path := range []string{"", "/balance", "/jobs", "/jobs?status=rejected", "/transactions", "/transactions/2"} {
		c.get("/v1/accounts/" + account.Number + path).want(http.StatusOK)
	}
	if a := c.get(jobsOf(account, "transactions"), "Accept", "text/csv").want(http.StatusOK); strings.Count(string(a.body), "\n") != 3 {
		t.Errorf("export of a closed account: %s", a)
	}
	ledgertest.Check(t, s.pool)
}
