package statement

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
)

const (
	// replicaWait is for how long a replica that is behind is waited for.
	replicaWait = 50 * time.Millisecond
	// replicaPause is how often it is asked meanwhile.
	replicaPause = 5 * time.Millisecond
)

// read lets the replica answer if it can, and else the primary: also where the
// replica fails, or ends a query that stands in the way of what it replays.
func read[T any](ctx context.Context, s *Statements, account ledger.Account, from func(*pgxpool.Pool) (T, error)) (T, error) {
	if s.replica != nil && s.hasCaughtUp(ctx, account) {
		got, err := from(s.replica)
		if err == nil || errors.Is(err, pgx.ErrNoRows) || ctx.Err() != nil {
			return got, err
		}
	}
	return from(s.primary)
}

// hasCaughtUp tells whether the replica has all of the account's history that the
// primary told of when this request began: so a client who has seen a job
// finished finds it. It compares the account's own position, not the log's: what
// others do meanwhile is nothing to wait for.
func (s *Statements) hasCaughtUp(ctx context.Context, account ledger.Account) bool {
	const sql = `SELECT last_seq >= $2 FROM accounts WHERE id = $1`
	ctx, cancel := context.WithTimeout(ctx, replicaWait)
	defer cancel()
	for {
		var has bool
		err := s.replica.QueryRow(ctx, sql, account.ID, account.LastSeq).Scan(&has)
		switch {
		case has:
			return true
		case err != nil && !errors.Is(err, pgx.ErrNoRows): // it is down; or behind the account's opening
			return false
		}
		select {
		case <-time.After(replicaPause):
		case <-ctx.Done():
			return false
		}
	}
}
