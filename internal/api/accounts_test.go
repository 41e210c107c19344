package api

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

func TestOpenAccount(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	tests := map[string]struct {
		body string
		want accountJSON // number and created_at only where known
	}{
		"Nothing":        {`{}`, accountJSON{Currency: "KRW"}},
		"Number":         {`{"number":"alice-KRW-1"}`, accountJSON{Number: "alice-KRW-1", Currency: "KRW"}},
		"ShortestNumber": {`{"number":"a-1Z"}`, accountJSON{Number: "a-1Z", Currency: "KRW"}},
		"LongestNumber":  {`{"number":"0123456789012345678901234567890123"}`, accountJSON{Number: "0123456789012345678901234567890123", Currency: "KRW"}},
		"Currency":       {`{"currency":"EUR"}`, accountJSON{Currency: "EUR"}},
		"InitialDeposit": {`{"initial_deposit":10000}`, accountJSON{Currency: "KRW", Balance: 10000, LastSeq: 1}},
		"Everything": {
			`{"number":"rich","currency":"USD","initial_deposit":9007199254740991}`,
			accountJSON{Number: "rich", Currency: "USD", Balance: 9007199254740991, LastSeq: 1},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			a := c.post("/v1/accounts", test.body).want(http.StatusCreated).wantNoHeader("Idempotent-Replayed")
			got := decode[accountJSON](a)
			a.wantHeader("Location", "/v1/accounts/"+got.Number)
			if test.want.Number == "" {
				test.want.Number = got.Number
			}
			test.want.CreatedAt, test.want.Status = got.CreatedAt, "open"
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			read := c.get(a.header.Get("Location")).want(http.StatusOK)
			if string(read.body) != string(a.body) {
				t.Errorf("reads as %s, opened as %s", read, a)
			}
			history := walk[transactionJSON](c, jobsOf(got, "transactions"), 20)
			if len(history) != int(test.want.LastSeq) {
				t.Fatalf("history %+v", history)
			}
			for _, first := range history {
				want := transactionJSON{Seq: 1, Type: "deposit", Amount: got.Balance, BalanceAfter: got.Balance, CreatedAt: first.CreatedAt}
				if first != want {
					t.Errorf("history %+v, want %+v", first, want)
				}
			}
		})
	}
	ledgertest.Check(t, s.pool)
}

func TestOpenAccount_InvalidRequest(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	for name, test := range map[string]struct {
		body   string
		faults []string
	}{
		"EveryFault": {
			`{"number":"a b","currency":"EURO","initial_deposit":0,"owner":"me"}`,
			[]string{"/currency invalid_value", "/initial_deposit out_of_range", "/number invalid_format", "/owner unknown_field"},
		},
		"Types": {
			`{"number":1234,"currency":false,"initial_deposit":"1"}`,
			[]string{"/currency invalid_type", "/initial_deposit invalid_type", "/number invalid_type"},
		},
		"NumberTooShort":    {`{"number":"abc"}`, []string{"/number invalid_format"}},
		"NumberTooLong":     {`{"number":"01234567890123456789012345678901234"}`, []string{"/number invalid_format"}},
		"NumberEmpty":       {`{"number":""}`, []string{"/number invalid_format"}},
		"NumberLineBreak":   {`{"number":"abcd\n"}`, []string{"/number invalid_format"}},
		"NumberNotASCII":    {`{"number":"abcdé"}`, []string{"/number invalid_format"}},
		"CurrencyLowerCase": {`{"currency":"krw"}`, []string{"/currency invalid_value"}},
		"CurrencyUnknown":   {`{"currency":"ABC"}`, []string{"/currency invalid_value"}},
		"CurrencyOfMetal":   {`{"currency":"XAU"}`, []string{"/currency invalid_value"}},
		"CurrencySpaced":    {`{"currency":" KR"}`, []string{"/currency invalid_value"}},
		"DepositTooLarge":   {`{"initial_deposit":9007199254740992}`, []string{"/initial_deposit out_of_range"}},
		"DepositFraction":   {`{"initial_deposit":1.0}`, []string{"/initial_deposit invalid_type"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.in(t).post("/v1/accounts", test.body).problem(http.StatusUnprocessableEntity, "invalid_request", test.faults...)
		})
	}
}

func TestOpenAccount_NumberTaken(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	c.post("/v1/accounts", `{"number":"rich"}`).want(http.StatusCreated)
	c.post("/v1/accounts", `{"number":"rich"}`).problem(http.StatusConflict, "number_taken")
	s.user(t).post("/v1/accounts", `{"number":"rich"}`).problem(http.StatusConflict, "number_taken")
	c.post("/v1/accounts", `{"number":"RICH"}`).want(http.StatusCreated) // numbers are case-sensitive
}

func TestOpenAccount_IdempotencyKey(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	const body = `{"currency":"EUR","initial_deposit":7}`
	first := c.post("/v1/accounts", body, "Idempotency-Key", "k").want(http.StatusCreated).wantNoHeader("Idempotent-Replayed")
	again := c.post("/v1/accounts", ` {"initial_deposit": 7, "currency": "EUR"}`, "Idempotency-Key", `"k"`).
		want(http.StatusCreated).wantHeader("Idempotent-Replayed", "true").wantHeader("Location", first.header.Get("Location"))
	if string(first.body) != string(again.body) {
		t.Errorf("%s\n%s", first, again)
	}
	// It answers with the account as it stands.
	account := decode[accountJSON](first)
	s.apply(t, c.ask(account, "deposits", 3).ID)
	later := decode[accountJSON](c.post("/v1/accounts", body, "Idempotency-Key", "k").want(http.StatusCreated))
	account.Balance, account.LastSeq = 10, 2
	if later != account {
		t.Errorf("got %+v, want %+v", later, account)
	}
	stranger := s.user(t)
	stranger.post("/v1/accounts", body, "Idempotency-Key", "k").want(http.StatusCreated).wantNoHeader("Idempotent-Replayed")
	if found := ledgertest.Check(t, s.pool); found.Accounts != 2 {
		t.Errorf("%d accounts, want 2", found.Accounts)
	}
}

func TestListAccounts(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, stranger := s.user(t), s.user(t)
	if a := c.get("/v1/accounts").want(http.StatusOK); string(a.body) != `{"data":[],"has_more":false,"next_cursor":null}` {
		t.Errorf("no accounts: %s", a)
	}
	var opened []accountJSON
	for i := range 5 {
		opened = append(opened, c.open(int64(i)))
		stranger.open(0)
	}
	for _, limit := range []int{1, 2, 4, 5, 6, 100} {
		if got := walk[accountJSON](c, fmt.Sprintf("/v1/accounts?limit=%d", limit), limit); !slices.Equal(got, opened) {
			t.Errorf("by %d: got %+v, want %+v", limit, got, opened)
		}
	}
}
