package statement

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
)

const (
	// replicaTime is how long a replica has to answer, or to begin an export. It
	// leaves the primary the longer part of a request's time.
	replicaTime = 600 * time.Millisecond
	// replicaWait is for how long a replica that is behind is waited for.
	replicaWait = 50 * time.Millisecond
	// replicaPause is how often it is asked meanwhile.
	replicaPause = 5 * time.Millisecond
)

var errBehind = errors.New("the replica is behind")

// reading reads with a connection, which it has to release.
type reading[T any] func(context.Context, *pgxpool.Conn) (T, error)

// read lets the replica answer if it can, and else the primary: also where the
// replica fails, is silent, or ends a query that stands in the way of what it
// replays.
func read[T any](ctx context.Context, s *Statements, account ledger.Owned, from reading[T]) (T, error) {
	if s.replica != nil {
		got, err := readReplica(ctx, s, account, from)
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ledger.ErrAccountNotFound) || ctx.Err() != nil {
			return got, err
		}
	}
	return readPool(ctx, s.primary, from)
}

func readPool[T any](ctx context.Context, pool *pgxpool.Pool, from reading[T]) (got T, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return got, err
	}
	return from(ctx, conn)
}

// readReplica asks with one connection whether the replica has caught up and what
// is to be read: behind its name there may be several servers.
func readReplica[T any](ctx context.Context, s *Statements, account ledger.Owned, from reading[T]) (got T, err error) {
	last, err := s.lastSeq(ctx, account)
	if err != nil {
		return got, err
	}
	ctx, cancel := context.WithTimeout(ctx, replicaTime)
	defer cancel()
	return readPool(ctx, s.replica, func(ctx context.Context, conn *pgxpool.Conn) (got T, err error) {
		if err := catchUp(ctx, conn, account, last); err != nil {
			conn.Release()
			return got, err
		}
		return from(ctx, conn)
	})
}

// lastSeq is the seq of the account's last transaction, as the primary has it.
func (s *Statements) lastSeq(ctx context.Context, account ledger.Owned) (last int64, err error) {
	const sql = `SELECT last_seq FROM accounts WHERE user_id = $1 AND number = $2`
	err = s.primary.QueryRow(ctx, sql, account.UserID, account.Number).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ledger.ErrAccountNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("read the account's last seq: %w", err)
	}
	return last, nil
}

// catchUp waits until the replica has the account's history as far as last, the
// primary's word when this request began: so a client who has seen a job finished
// finds it. It compares the account's own position, not the log's: what others do
// meanwhile is nothing to wait for.
func catchUp(ctx context.Context, replica *pgxpool.Conn, account ledger.Owned, last int64) error {
	const sql = `SELECT EXISTS (SELECT FROM accounts WHERE user_id = $1 AND number = $2 AND last_seq >= $3)`
	for begun := time.Now(); time.Since(begun) < replicaWait; {
		var has bool
		if err := replica.QueryRow(ctx, sql, account.UserID, account.Number, last).Scan(&has); err != nil {
			return err
		}
		if has {
			return nil
		}
		select {
		case <-time.After(replicaPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errBehind
}
