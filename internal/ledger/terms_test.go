package ledger_test

import (
	"errors"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
)

func TestTerms(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	owner, stranger := ledgertest.User(t, pool), ledgertest.User(t, pool)
	accounts := ledger.NewAccounts(pool)
	const number = "terms-1"
	if _, err := accounts.Terms(t.Context(), owner, number); !errors.Is(err, ledger.ErrAccountNotFound) {
		t.Errorf("before there is one: %v, want %v", err, ledger.ErrAccountNotFound)
	}
	opened, _, err := accounts.Open(t.Context(), ledger.Opening{UserID: owner, Number: number, Currency: "KRW", InitialDeposit: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := opened
	want.Balance, want.LastSeq = 0, 0
	for range 2 {
		if got, err := accounts.Terms(t.Context(), owner, number); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
		if _, err := accounts.Terms(t.Context(), stranger, number); !errors.Is(err, ledger.ErrAccountNotFound) {
			t.Errorf("a stranger: %v, want %v", err, ledger.ErrAccountNotFound)
		}
	}
	if account, err := accounts.Account(t.Context(), owner, number); err != nil || account != opened {
		t.Errorf("the account itself: got %+v, %v; want %+v", account, err, opened)
	}
	pool.Close()
	if got, err := accounts.Terms(t.Context(), owner, number); err != nil || got != want {
		t.Errorf("from memory: got %+v, %v; want %+v", got, err, want)
	}
}

func TestTermsAreBounded(t *testing.T) {
	t.Parallel()
	if most := ledger.RememberMany(200_000); most > 50_000 {
		t.Errorf("%d accounts are remembered", most)
	}
}
