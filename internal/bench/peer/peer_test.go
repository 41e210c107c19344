package peer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	// fasthttp's clock runs as long as the process, the connections of its tests for ten seconds.
	testenv.Main(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// The peer is right, whichever way it sends BEGIN.
func TestPeer(t *testing.T) {
	t.Parallel()
	for _, apart := range []bool{false, true} {
		t.Run(fmt.Sprintf("apart=%t", apart), func(t *testing.T) {
			t.Parallel()
			testPeer(t, apart)
		})
	}
}

func testPeer(t *testing.T, apart bool) {
	t.Helper()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, `ALTER TABLE jobs DISABLE TRIGGER jobs_enter_queue; ALTER TABLE transactions DISABLE TRIGGER transactions_rules`)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 100)
	p := newPeer(pool, []byte(strings.Repeat("k", 32)), apart)
	app := p.app()
	post := func(kind, key, body string, owner uuid.UUID) (int, finishedJob) {
		t.Helper()
		return send(t, app, p, "/v1/accounts/"+account.Number+"/"+kind, key, body, owner)
	}

	status, first := post("deposits", "k1", `{"amount":50}`, user)
	if status != http.StatusCreated || first.Transaction == nil || first.Transaction.BalanceAfter != 150 {
		t.Errorf("deposit: got %d, %+v", status, first)
	}
	if status, again := post("deposits", "k1", `{"amount":50}`, user); status != http.StatusCreated || again.ID != first.ID {
		t.Errorf("the same key again: got %d, %+v", status, again)
	}
	for _, refused := range []struct {
		kind, key, body string
		owner           uuid.UUID
		want            int
	}{
		{"deposits", "k1", `{"amount":51}`, user, http.StatusUnprocessableEntity},
		{"withdrawals", "k2", `{"amount":151}`, user, http.StatusUnprocessableEntity},
		{"deposits", "k3", `{"amount":1}`, uuid.New(), http.StatusNotFound},
		{"deposits", "", `{"amount":1}`, user, http.StatusUnprocessableEntity},
		{"deposits", "k4", `{`, user, http.StatusBadRequest},
	} {
		if status, _ := post(refused.kind, refused.key, refused.body, refused.owner); status != refused.want {
			t.Errorf("%+v: got %d", refused, status)
		}
	}
	if status, last := post("withdrawals", "k5", `{"amount":150}`, user); status != http.StatusCreated || last.Transaction.BalanceAfter != 0 {
		t.Errorf("withdrawal: got %d, %+v", status, last)
	}
	ledgertest.Exec(t, pool, `ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_enter_queue; ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_rules`)
	if found := ledgertest.Check(t, pool); found.Jobs != 2 {
		t.Errorf("there are %d jobs, want 2", found.Jobs)
	}
	if response, err := app.Test(newRequest(t, "/v1/accounts/"+account.Number+"/deposits", "k6", `{"amount":1}`, "no.token.atall")); err != nil {
		t.Error(err)
	} else if _ = response.Body.Close(); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("a bad token: got %d", response.StatusCode)
	}
}

func send(t *testing.T, app *fiber.App, p *peer, path, key, body string, owner uuid.UUID) (int, finishedJob) {
	t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": "passbook", "aud": "passbook", "sub": owner.String(), "exp": 1 << 40,
	}).SignedString(p.secret)
	if err != nil {
		t.Fatal(err)
	}
	response, err := app.Test(newRequest(t, path, key, body, token), -1)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	var answer finishedJob
	if response.StatusCode == http.StatusCreated {
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
	}
	return response.StatusCode, answer
}

func newRequest(t *testing.T, path, key, body, token string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "peer"
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	return request
}
