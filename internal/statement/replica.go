package statement

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
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

var (
	errBehind = errors.New("the replica is behind")
	errAstray = errors.New("the replica follows another primary, or did at its last checkpoint")
)

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
//
// What a replica shows its primary has flushed, though perhaps not another standby. It is
// confirmed as if it had been read from the primary: both are of one history, or it is not
// read.
func readReplica[T any](ctx context.Context, s *Statements, account ledger.Owned, from reading[T]) (got T, err error) {
	asking, asked := postgres.WithShown(ctx)
	last, err := s.lastSeq(asking, account)
	if err != nil {
		return got, err
	}
	reading, shown := postgres.WithShown(ctx)
	reading, cancel := context.WithTimeout(reading, replicaTime)
	defer cancel()
	got, err = readPool(reading, s.replica, func(ctx context.Context, conn *pgxpool.Conn) (got T, err error) {
		if err := catchUp(ctx, conn, account, last, asked.Life()); err != nil {
			conn.Release()
			return got, err
		}
		return from(ctx, conn)
	})
	if err == nil {
		shown.AddAs(ctx, asked.Life())
	}
	return got, err
}

// lastSeq is the seq of the account's last transaction, as the primary has it.
func (s *Statements) lastSeq(ctx context.Context, account ledger.Owned) (last int64, err error) {
	const sql = `SELECT last_seq, xmin, ` + postgres.ShownSQL + ` FROM accounts WHERE user_id = $1 AND number = $2`
	rows, _ := s.primary.Query(ctx, sql, account.UserID, account.Number) // CollectExactlyOneRow returns its error
	last, err = pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, pgx.RowTo[int64]))
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
// meanwhile is nothing to wait for. errAstray where the primary, in life, has another history.
func catchUp(ctx context.Context, replica *pgxpool.Conn, account ledger.Owned, last int64, life postgres.ServerLife) error {
	const sql = `SELECT EXISTS (SELECT FROM accounts WHERE user_id = $1 AND number = $2 AND last_seq >= $3), ` + postgres.HistorySQL
	for begun := time.Now(); time.Since(begun) < replicaWait; {
		var has bool
		var history string
		if err := replica.QueryRow(ctx, sql, account.UserID, account.Number, last).Scan(&has, &history); err != nil {
			return err
		}
		switch {
		case history != life.History:
			return errAstray
		case has:
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
