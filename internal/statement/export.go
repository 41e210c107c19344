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

var errSilent = errors.New("no answer from Postgres")

// Export is a part of a history that is read as it is sent, however much it is:
// rows come from Postgres as fast as they are taken. All of them are of one
// moment, that of Statements.Export.
type Export struct {
	conn *pgxpool.Conn
	tx   pgx.Tx
	rows pgx.Rows
	more bool // the next row is there
	// stop ends the reading where it is; the connection is lost with it.
	stop context.CancelFunc
}

// Export begins to read all of a page, whose limit it ignores. ctx bounds the
// beginning alone. Each has to be called then: the export has a connection to
// itself until it returns.
func (s *Statements) Export(ctx context.Context, page Page) (*Export, error) {
	page.Limit = 0
	export, err := read(ctx, s, page.Account, func(ctx context.Context, conn *pgxpool.Conn) (*Export, error) {
		return beginExport(ctx, conn, page)
	})
	if err != nil {
		return nil, fmt.Errorf("export transactions: %w", err)
	}
	return export, nil
}

func beginExport(ctx context.Context, conn *pgxpool.Conn, page Page) (*Export, error) {
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	hasTime := context.AfterFunc(ctx, stop)
	e := &Export{conn: conn, stop: stop}
	err := e.begin(reading, page)
	if !hasTime() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		e.end(ctx)
		return nil, err
	}
	return e, nil
}

// asLongAsItTakesSQL lets a transaction's statements go on.
const asLongAsItTakesSQL = `SET LOCAL statement_timeout = 0`

func (e *Export) begin(ctx context.Context, page Page) (err error) {
	if e.tx, err = e.conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}); err != nil {
		return err
	}
	if _, err = e.tx.Exec(ctx, asLongAsItTakesSQL); err != nil {
		return err
	}
	sql, args := page.Statement()
	if e.rows, err = e.tx.Query(ctx, sql, args...); err != nil {
		return err
	}
	e.more = e.rows.Next() // waits until Postgres has begun
	if err := e.rows.Err(); err != nil || e.more {
		return err
	}
	return checkOwned(ctx, e.tx, page.Account)
}

// Each calls do for each transaction, until it answers an error or ctx ends: then
// Postgres is told to stop. What do is given it has until it returns. A Postgres
// that is silent for postgres.RoundTripTimeout is an error, too.
func (e *Export) Each(ctx context.Context, do func(*ledger.Transaction) error) error {
	defer e.end(ctx)
	defer context.AfterFunc(ctx, e.stop)()
	silence := time.AfterFunc(postgres.RoundTripTimeout, e.stop)
	defer silence.Stop()
	var t ledger.Transaction
	for e.more {
		silence.Stop() // how long do takes is the client's affair
		err := e.rows.Scan(&t.Seq, &t.Type, &t.Amount, &t.BalanceAfter, &t.Description, &t.JobID, &t.CreatedAt)
		if err != nil {
			return fmt.Errorf("export transactions: %w", err)
		}
		if err := do(&t); err != nil {
			return err
		}
		silence.Reset(postgres.RoundTripTimeout)
		e.more = e.rows.Next()
	}
	err := e.rows.Err()
	if err == nil {
		return nil
	}
	if !silence.Stop() {
		err = errors.Join(errSilent, err)
	}
	return fmt.Errorf("export transactions: %w", errors.Join(ctx.Err(), err))
}

// end leaves the connection: to the next, where all was read.
func (e *Export) end(ctx context.Context) {
	defer e.stop()
	defer e.conn.Release()
	if e.more {
		e.stop()
	}
	if e.rows != nil {
		e.rows.Close()
	}
	if e.tx != nil {
		ctx, cancel := context.WithTimeout(ctx, postgres.RoundTripTimeout)
		defer cancel()
		_ = e.tx.Rollback(ctx) // it only read; where that fails the connection is closed
	}
}
