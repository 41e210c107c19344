package finished

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
)

// account is an account that is watched.
type account struct {
	watchers map[chan struct{}]struct{}
	version  string // at the last look; empty before the first
}

// WatchAccount returns a channel (buffer of 1) that signals when a job of the account may have
// finished. After a signal the caller looks: nothing need have changed. A signal may come before the
// first look. The caller must call stop.
func (h *Hub) WatchAccount(accountID int64) (changed <-chan struct{}, stop func()) {
	watcher := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.accounts[accountID] == nil {
		h.accounts[accountID] = &account{watchers: map[chan struct{}]struct{}{}}
	}
	h.accounts[accountID].watchers[watcher] = struct{}{}
	return watcher, sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		watchers := h.accounts[accountID].watchers
		if delete(watchers, watcher); len(watchers) == 0 {
			delete(h.accounts, accountID)
		}
	})
}

func (a *account) signal() {
	for watcher := range a.watchers {
		signal(watcher)
	}
}

// versionsSQL reads which transaction wrote each account's row last: each outcome of a job writes
// the row. It shows a client nothing, so it asks for no owner.
//
// $1 the accounts' ids.
const versionsSQL = `SELECT id, xmin::text FROM accounts WHERE id = ANY($1)`

// lookAtAccounts signals the watchers of each account whose version is another than at the last
// look, or was not read yet.
func (h *Hub) lookAtAccounts(ctx context.Context) error {
	h.mu.Lock()
	watched := slices.Collect(maps.Keys(h.accounts))
	h.mu.Unlock()
	if len(watched) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	type row struct {
		ID      int64
		Version string
	}
	rows, _ := h.pool.Query(ctx, versionsSQL, watched) // CollectRows returns its error
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return fmt.Errorf("look at accounts: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, row := range found {
		if account := h.accounts[row.ID]; account != nil && account.version != row.Version {
			account.version = row.Version
			account.signal()
		}
	}
	return nil
}
