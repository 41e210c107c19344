package ledger

import (
	"context"
	"sync"

	"github.com/google/uuid"
)

// maxTerms bounds the accounts remembered: some 250 bytes each.
const maxTerms = 50_000

// terms remembers what of accounts never changes, which the database sees to
// (accounts_terms, accounts_are_kept): whose they are, above all. Who reads page
// after page is asked for it once.
type terms struct {
	mu    sync.Mutex
	known map[termsKey]Account // guarded by mu
}

type termsKey struct {
	userID uuid.UUID
	number string
}

func (t *terms) get(key termsKey) (account Account, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	account, ok = t.known[key]
	return account, ok
}

func (t *terms) keep(key termsKey, account Account) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxTerms { // forgetting costs a read each, and is simpler than choosing
		t.known = map[termsKey]Account{}
	}
	t.known[key] = account
}

// Terms is Account without what changes, the balance and the last seq, which are
// zero: it asks Postgres only for an account that it has not seen lately.
func (a *Accounts) Terms(ctx context.Context, userID uuid.UUID, number string) (Account, error) {
	key := termsKey{userID, number}
	if account, ok := a.terms.get(key); ok {
		return account, nil
	}
	account, err := a.Account(ctx, userID, number)
	if err != nil {
		return Account{}, err
	}
	account.Balance, account.LastSeq = 0, 0
	a.terms.keep(key, account)
	return account, nil
}
