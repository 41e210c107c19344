// Package statement is the read side: the histories of accounts. Its promise:
// a page costs what its rows cost, wherever in the history it lies and whatever
// it is filtered by.
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

// ErrNotFound is returned for a transaction that is not there.
var ErrNotFound = errors.New("transaction not found")

// Statements reads histories.
type Statements struct {
	primary, replica *pgxpool.Pool
}

// New reads the histories in the database behind primary, or in its replica
// where that is not nil.
func New(primary, replica *pgxpool.Pool) *Statements {
	return &Statements{primary: primary, replica: replica}
}

// Page asks for a part of an account's history: at least as much of it is there as
// was when this was asked.
type Page struct {
	Account   ledger.Account   // its id counts
	Type      ledger.EntryType // all where empty
	From      time.Time        // inclusive; no bound where zero
	To        time.Time        // exclusive; no bound where zero
	Ascending bool             // by seq; else the newest first
	After     int64            // the seq that the page before ended with, 0 for the first page
	AfterTime time.Time        // its time, where known: for a page ByTime, and then in the place of After
	Limit     int              // all where 0
}

// ByTime tells whether the page has a type or a time. Such a list is read in the
// order of time, which is that of seq.
func (p Page) ByTime() bool { return p.Type != "" || !p.From.IsZero() || !p.To.IsZero() }

const columns = `seq, type, amount, balance_after, description, job_id, created_at`

// List reads a page of a history. Whose account it is, the caller has checked.
func (s *Statements) List(ctx context.Context, page Page) ([]ledger.Transaction, error) {
	sql, args := page.Statement()
	transactions, err := read(ctx, s, page.Account, func(ctx context.Context, conn *pgxpool.Conn) ([]ledger.Transaction, error) {
		defer conn.Release()
		rows, _ := conn.Query(ctx, sql, args...) // CollectRows returns its error
		return pgx.CollectRows(rows, pgx.RowToStructByPos[ledger.Transaction])
	})
	if err != nil {
		return nil, fmt.Errorf("list transactions: %w", err)
	}
	return transactions, nil
}

// Statement is what List asks Postgres. It walks the primary key from one end or,
// ByTime, the index of the type's times; that of each type, merged, where it is for
// all. Time rises with seq within an account, so nothing is read to be thrown away,
// and nothing is sorted.
func (p Page) Statement() (sql string, args []any) {
	arg := func(value any) string {
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	account := arg(p.Account.ID)
	where := "account_id = " + account
	by, beyond, direction := "seq", "<", "DESC"
	if p.ByTime() {
		by = "created_at"
	}
	if p.Ascending {
		beyond, direction = ">", "ASC"
	}
	if !p.From.IsZero() {
		where += " AND created_at >= " + arg(p.From)
	}
	if !p.To.IsZero() {
		where += " AND created_at < " + arg(p.To)
	}
	switch {
	case p.ByTime() && !p.AfterTime.IsZero():
		where += " AND created_at " + beyond + " " + arg(p.AfterTime)
	case p.ByTime() && p.After != 0:
		where += " AND created_at " + beyond +
			" (SELECT created_at FROM transactions WHERE account_id = " + account + " AND seq = " + arg(p.After) + ")"
	case p.After != 0:
		where += " AND seq " + beyond + " " + arg(p.After)
	}
	walk, order := "SELECT "+columns+" FROM transactions WHERE "+where, " ORDER BY "+by+" "+direction
	switch {
	case p.Type == ledger.Deposit:
		walk += deposits
	case p.Type == ledger.Withdrawal:
		walk += withdrawals
	case p.ByTime():
		walk = "(" + walk + deposits + order + ") UNION ALL (" + walk + withdrawals + order + ")"
	}
	// Not told how many rows it is for, the planner takes it for a tenth of them. By
	// an estimate it might read them all, to sort them.
	return walk + order + " LIMIT (SELECT nullif(" + arg(int64(p.Limit)) + ", 0))", args
}

// Constants, as they stand in the indexes' predicates.
const (
	deposits    = ` AND type = 'deposit'`
	withdrawals = ` AND type = 'withdrawal'`
)

// TransactionSQL reads one entry by the primary key.
//
// $1 the account's id, $2 the seq.
const TransactionSQL = `SELECT ` + columns + ` FROM transactions WHERE account_id = $1 AND seq = $2`

// Transaction reads one entry of a history; ErrNotFound where it has no such.
func (s *Statements) Transaction(ctx context.Context, account ledger.Account, seq int64) (ledger.Transaction, error) {
	transaction, err := read(ctx, s, account, func(ctx context.Context, conn *pgxpool.Conn) (ledger.Transaction, error) {
		defer conn.Release()
		rows, _ := conn.Query(ctx, TransactionSQL, account.ID, seq) // CollectExactlyOneRow returns its error
		return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[ledger.Transaction])
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return ledger.Transaction{}, ErrNotFound
	}
	if err != nil {
		return ledger.Transaction{}, fmt.Errorf("read transaction: %w", err)
	}
	return transaction, nil
}

// Balance is what an account had at a time.
type Balance struct {
	Seq     int64 // of the last transaction until then, 0 before the first
	Balance int64 // minor units
	At      time.Time
}

// BalanceSQL is one probe of each type's index. Where the clock has gone back,
// the last transaction is dated ahead of it: it counts all the same.
//
// $1 the account's id, $2 the time; now where null.
const BalanceSQL = `
	SELECT coalesce(entry.seq, 0), coalesce(entry.balance_after, 0),
		coalesce($2, greatest(statement_timestamp(), entry.created_at))
	FROM (SELECT) nothing LEFT JOIN LATERAL (
		(` + untilSQL + deposits + newestSQL + `) UNION ALL (` + untilSQL + withdrawals + newestSQL + `)` + newestSQL + `
	) entry ON true`

const (
	untilSQL = `
			SELECT seq, balance_after, created_at FROM transactions
			WHERE account_id = $1 AND created_at <= coalesce($2::timestamptz, 'infinity')`
	newestSQL = ` ORDER BY created_at DESC LIMIT 1`
)

// Balance reads what an account had after the last transaction at or before a
// time, to the microsecond; now where at is zero. Whose account it is, the caller
// has checked.
func (s *Statements) Balance(ctx context.Context, account ledger.Account, at time.Time) (Balance, error) {
	var when *time.Time
	probe := func(ctx context.Context, conn *pgxpool.Conn) (Balance, error) {
		defer conn.Release()
		rows, _ := conn.Query(ctx, BalanceSQL, account.ID, when) // CollectExactlyOneRow returns its error
		return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Balance])
	}
	var balance Balance
	var err error
	if at.IsZero() {
		balance, err = readPool(ctx, s.primary, probe) // times come from one clock, the primary's
	} else {
		when = &at
		balance, err = read(ctx, s, account, probe)
	}
	if err != nil {
		return Balance{}, fmt.Errorf("read balance: %w", err)
	}
	return balance, nil
}
