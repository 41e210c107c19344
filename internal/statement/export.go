package statement

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

// Export is a part of a history that is read as it is sent, however much it is:
// rows come from Postgres as fast as they are taken. All of them are of one
// moment, that of Statements.Export.
type Export struct {
	tx   pgx.Tx
	rows pgx.Rows
	stop context.CancelFunc
	more bool // the next row is there
}

// Export begins to read all of a page, whose limit it ignores. ctx bounds the
// beginning alone: from then on it takes what it takes. It must be closed.
func (s *Statements) Export(ctx context.Context, page Page) (*Export, error) {
	page.Limit = 0
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	hasTime := context.AfterFunc(ctx, stop)
	begun, err := read(reading, s, page.Account, func(pool *pgxpool.Pool) (*Export, error) {
		return export(reading, pool, page)
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("export transactions: %w", err)
	}
	begun.stop = stop
	if !hasTime() {
		begun.Close() //nolint:contextcheck // it has a time of its own
		return nil, fmt.Errorf("export transactions: %w", ctx.Err())
	}
	return begun, nil
}

// asLongAsItTakesSQL lets a transaction's statements go on, and has them walk an
// index in its order: for a whole history the planner would rather sort it first.
const asLongAsItTakesSQL = `
	SELECT set_config(name, value, true) FROM (VALUES
		('statement_timeout', '0'), ('enable_sort', 'off'), ('enable_bitmapscan', 'off')
	) setting (name, value)`

func export(ctx context.Context, pool *pgxpool.Pool, page Page) (*Export, error) {
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	e := &Export{tx: tx}
	_, err = tx.Exec(ctx, asLongAsItTakesSQL)
	if err == nil {
		sql, args := page.query()
		e.rows, err = tx.Query(ctx, sql, args...)
	}
	if err == nil {
		e.more = e.rows.Next() // waits until Postgres has begun
		err = e.rows.Err()
	}
	if err != nil {
		return nil, errors.Join(err, tx.Rollback(ctx))
	}
	return e, nil
}

// Each calls do for each transaction, until it answers an error. What it is given
// it has until it returns.
func (e *Export) Each(do func(*ledger.Transaction) error) error {
	var t ledger.Transaction
	for ; e.more; e.more = e.rows.Next() {
		err := e.rows.Scan(&t.Seq, &t.Type, &t.Amount, &t.BalanceAfter, &t.Description, &t.JobID, &t.CreatedAt)
		if err != nil {
			return fmt.Errorf("export transactions: %w", err)
		}
		if err := do(&t); err != nil {
			return err
		}
	}
	if err := e.rows.Err(); err != nil {
		return fmt.Errorf("export transactions: %w", err)
	}
	return nil
}

// Close ends the export. What was not read yet is not read: Postgres is told to
// stop, and the connection is left.
func (e *Export) Close() {
	if e.more {
		e.stop()
	}
	e.rows.Close()
	ctx, cancel := context.WithTimeout(context.Background(), postgres.RoundTripTimeout)
	defer cancel()
	_ = e.tx.Rollback(ctx) // it only read; a connection that is left has done so already
	e.stop()
}
