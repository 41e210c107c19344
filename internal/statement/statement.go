// Package statement is the read side: the histories of accounts. Its promise:
// a page costs what its rows cost, wherever in the history it lies and whatever
// it is filtered by.
package statement

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
)

// ErrNotFound is returned for a transaction that is not there.
var ErrNotFound = errors.New("transaction not found")

// Statements reads histories.
type Statements struct {
	pool *pgxpool.Pool
}

// New reads the histories in the database behind pool.
func New(pool *pgxpool.Pool) *Statements {
	return &Statements{pool: pool}
}

// Page asks for a part of an account's history.
type Page struct {
	AccountID int64
	Type      ledger.EntryType // all where empty
	From      time.Time        // inclusive; no bound where zero
	To        time.Time        // exclusive; no bound where zero
	Ascending bool             // by seq; else the newest first
	After     int64            // the seq that the page before ended with, 0 for the first page
	Limit     int
}

const columns = `seq, type, amount, balance_after, description, job_id, created_at`

// List reads a page of a history. Whose account it is, the caller has checked.
func (s *Statements) List(ctx context.Context, page Page) ([]ledger.Transaction, error) {
	sql, args := page.query()
	rows, _ := s.pool.Query(ctx, sql, args...) // CollectRows returns its error
	transactions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ledger.Transaction])
	if err != nil {
		return nil, fmt.Errorf("list transactions: %w", err)
	}
	return transactions, nil
}

// query walks one index between two seqs: the primary key, or transactions_type.
// Time rises with seq within an account, so a range of time is a range of seq,
// and its ends are one probe each of transactions_time: nothing is read to be
// thrown away, and nothing is sorted.
//
// A type is a range of (type, seq) rather than an equality, which the planner
// would rather check row by row while it walks the primary key: on a stretch
// without the type that reads on and on.
func (p Page) query() (sql string, args []any) {
	arg := func(value any) int {
		args = append(args, value)
		return len(args)
	}
	account := arg(p.AccountID)
	lowest, beyond := []string{"0"}, []string{"9223372036854775807"}
	if !p.From.IsZero() {
		lowest = append(lowest, fmt.Sprintf(firstSeqAt, account, arg(p.From)))
	}
	if !p.To.IsZero() {
		beyond = append(beyond, fmt.Sprintf(firstSeqAt, account, arg(p.To)))
	}
	direction := "DESC"
	switch {
	case p.Ascending:
		direction = "ASC"
		lowest = append(lowest, fmt.Sprintf("$%d::bigint + 1", arg(p.After)))
	case p.After != 0:
		beyond = append(beyond, fmt.Sprintf("$%d::bigint", arg(p.After)))
	}
	first, end := "greatest("+strings.Join(lowest, ", ")+")", "least("+strings.Join(beyond, ", ")+")"
	within, order := fmt.Sprintf("seq >= %s AND seq < %s", first, end), "seq "+direction
	if p.Type != "" {
		entry := arg(string(p.Type))
		within = fmt.Sprintf("(type, seq) >= ($%d::entry_type, %s) AND (type, seq) < ($%[1]d::entry_type, %[3]s)", entry, first, end)
		order = "type " + direction + ", " + order
	}
	return fmt.Sprintf(`SELECT %s FROM transactions WHERE account_id = $%d AND %s ORDER BY %s LIMIT $%d`,
		columns, account, within, order, arg(p.Limit)), args
}

// firstSeqAt is the first seq at or after a time; past the end where there is
// none. It takes the numbers of the parameters of the account's id and the time.
const firstSeqAt = `coalesce((SELECT seq FROM transactions
	WHERE account_id = $%d AND created_at >= $%d ORDER BY created_at LIMIT 1), 9223372036854775807)`

// Transaction reads one entry of a history; ErrNotFound where it has no such.
func (s *Statements) Transaction(ctx context.Context, accountID, seq int64) (ledger.Transaction, error) {
	const sql = `SELECT ` + columns + ` FROM transactions WHERE account_id = $1 AND seq = $2`
	rows, _ := s.pool.Query(ctx, sql, accountID, seq) // CollectExactlyOneRow returns its error
	transaction, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[ledger.Transaction])
	if errors.Is(err, pgx.ErrNoRows) {
		return ledger.Transaction{}, ErrNotFound
	}
	if err != nil {
		return ledger.Transaction{}, fmt.Errorf("read transaction: %w", err)
	}
	return transaction, nil
}
