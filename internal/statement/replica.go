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
	// replicaTime bounds the answer of a replica. The longer part of a request's time remains for
	// the primary.
	replicaTime = 600 * time.Millisecond
	// replicaWait bounds the wait for a replica that is behind.
	replicaWait = 50 * time.Millisecond
	// replicaPause is the time between two checks of that replica.
	replicaPause = 5 * time.Millisecond
)

var (
	errBehind = errors.New("the replica is behind")
	errAstray = errors.New("the replica has the history of another primary, or had at its last checkpoint")
)

// reading reads with a connection, and releases it.
type reading[T any] func(context.Context, *pgxpool.Conn) (T, error)

// read reads from the replica. If the replica is behind, fails, is silent, ends a query that conflicts
// with its recovery, or does not find what was asked for, read reads from the primary. So a read that
// finds nothing reports the primary's server life, in which the gate confirms it.
func read[T any](ctx context.Context, s *Statements, account ledger.Owned, from reading[T]) (T, error) {
	if s.replica != nil {
		if got, err := readReplica(ctx, s, account, from); err == nil || ctx.Err() != nil {
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

// readReplica checks with one connection that the replica has caught up, and reads with the same
// connection: its name may stand for several servers.
//
// The primary has flushed what a replica shows, but perhaps not another standby. So the read is
// confirmed as a read from the primary. Both have the same history; readReplica reads from no other
// replica.
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

// lastSeq reads the seq of the account's last transaction from the primary.
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

// catchUp waits until the replica has the account's history up to last, the primary's last seq when
// this request began. So a client that has seen a finished job finds its transaction. catchUp
// compares the account's seq, not the log position: it need not wait for other accounts. errAstray
// where the primary, in life, has another history.
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
