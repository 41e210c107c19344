// Package statement reads the histories of accounts. Its promise: the cost of a page depends on its
// number of rows, and not on its position in the history or its filters.
package statement

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

// ErrNotFound is returned for a transaction that does not exist.
var ErrNotFound = errors.New("transaction not found")

// Statements reads histories.
type Statements struct {
	primary, replica *pgxpool.Pool
}

// New reads from the database behind primary, or from its replica where that is not nil.
func New(primary, replica *pgxpool.Pool) *Statements {
	return &Statements{primary: primary, replica: replica}
}

// Page selects a part of an account's history. The result has every selected transaction that was
// there when the read began, up to Limit.
type Page struct {
	Account   ledger.Owned
	Type      ledger.EntryType // empty for all
	From      time.Time        // inclusive; no bound where zero
	To        time.Time        // exclusive; no bound where zero
	Ascending bool             // by seq; else the newest first
	After     int64            // the last seq of the previous page, 0 for the first page
	AfterTime time.Time        // its time, where known; replaces After in a page ByTime
	Limit     int              // 0 for all
}

// ByTime reports whether the page has a type or a time. Such a list is read in the order of time,
// which is also the order of seq.
func (p Page) ByTime() bool { return p.Type != "" || !p.From.IsZero() || !p.To.IsZero() }

const columns = `seq, type, amount, balance_after, description, job_id, created_at, xmin, ` + postgres.ShownSQL

// List reads a page of a history; ledger.ErrAccountNotFound where the user has no such account.
func (s *Statements) List(ctx context.Context, page Page) ([]ledger.Transaction, error) {
	sql, args := page.Statement()
	transactions, err := read(ctx, s, page.Account, func(ctx context.Context, conn *pgxpool.Conn) ([]ledger.Transaction, error) {
		defer conn.Release()
		rows, _ := conn.Query(ctx, sql, args...) // CollectRows returns its error
		transactions, err := pgx.CollectRows(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[ledger.Transaction]))
		if err == nil && len(transactions) == 0 {
			err = checkOwned(ctx, conn, page.Account)
		}
		return transactions, err
	})
	if err != nil {
		return nil, fmt.Errorf("list transactions: %w", err)
	}
	return transactions, nil
}

// ownedSQL reads the id of the account $2 of the user $1, once a statement. No read uses an id from
// an earlier read: each checks the owner itself.
const ownedSQL = `WITH owned AS MATERIALIZED (SELECT id FROM accounts WHERE user_id = $1 AND number = $2) `

// ofOwned finds the rows of that account.
const ofOwned = `account_id = (SELECT id FROM owned)`

// checkOwned returns ledger.ErrAccountNotFound for an account that is not the caller's, and nil for
// one that only has no rows.
func checkOwned(ctx context.Context, conn interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, account ledger.Owned,
) error {
	const sql = ownedSQL + `SELECT FROM owned`
	err := conn.QueryRow(ctx, sql, account.UserID, account.Number).Scan()
	if errors.Is(err, pgx.ErrNoRows) {
		return ledger.ErrAccountNotFound
	}
	return err
}

// Statement returns the statement of List. It walks the primary key from one end or, for a page
// ByTime, the index of the type's times; for all types it merges the walks of both indexes. Time
// rises with seq within an account, so Postgres reads no row in vain and sorts nothing.
func (p Page) Statement() (sql string, args []any) {
	arg := func(value any) string {
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	arg(p.Account.UserID)
	arg(p.Account.Number)
	where := ofOwned
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
			" (SELECT created_at FROM transactions WHERE " + ofOwned + " AND seq = " + arg(p.After) + ")"
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
	// The planner does not see the limit, and assumes a tenth of the rows. With an estimate it
	// might read all rows and sort them.
	return ownedSQL + walk + order + " LIMIT (SELECT nullif(" + arg(int64(p.Limit)) + ", 0))", args
}

// Constants, as they stand in the indexes' predicates.
const (
	deposits    = ` AND type = 'deposit'`
	withdrawals = ` AND type = 'withdrawal'`
)

// TransactionSQL reads one transaction by the primary key.
//
// $1 the user, $2 the account's number, $3 the seq.
const TransactionSQL = ownedSQL + `SELECT ` + columns + ` FROM transactions WHERE ` + ofOwned + ` AND seq = $3`

// Transaction reads one transaction; ErrNotFound where the account has none with this seq, and
// ledger.ErrAccountNotFound where the user has no such account.
func (s *Statements) Transaction(ctx context.Context, account ledger.Owned, seq int64) (ledger.Transaction, error) {
	transaction, err := read(ctx, s, account, func(ctx context.Context, conn *pgxpool.Conn) (ledger.Transaction, error) {
		defer conn.Release()
		rows, _ := conn.Query(ctx, TransactionSQL, account.UserID, account.Number, seq) // CollectExactlyOneRow returns its error
		transaction, err := pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[ledger.Transaction]))
		if errors.Is(err, pgx.ErrNoRows) {
			err = cmp.Or(checkOwned(ctx, conn, account), ErrNotFound)
		}
		return transaction, err
	})
	if errors.Is(err, ErrNotFound) {
		return ledger.Transaction{}, ErrNotFound
	}
	if err != nil {
		return ledger.Transaction{}, fmt.Errorf("read transaction: %w", err)
	}
	return transaction, nil
}

// Balance is what an account had at a time.
type Balance struct {
	Currency string // ISO 4217
	Seq      int64  // of the last transaction by then, 0 before the first
	Balance  int64  // minor units
	At       time.Time
}

// BalanceSQL probes each type's index once. It also returns whether the balance is final. Every
// later transaction of the account gets a later time than both last_at and answered_until. So the
// balance is final at each time up to the later of these two. An answer for now is for that time,
// unless it is more than a second ago. The account's row is never older than a transaction that is
// visible with it: once the row is durable, so is the transaction.
//
// $1 the user, $2 the account's number, $3 the time; now where null.
const BalanceSQL = `
	SELECT account.currency, coalesce(entry.seq, 0), coalesce(entry.balance_after, 0),
		coalesce($3, greatest(account.last_at, account.answered_until, entry.created_at)),
		coalesce($3, statement_timestamp() - interval '1 second') <= greatest(account.last_at, account.answered_until),
		account.xmin, ` + postgres.ShownSQL + `
	FROM accounts account LEFT JOIN LATERAL (
		(` + untilSQL + deposits + newestSQL + `) UNION ALL (` + untilSQL + withdrawals + newestSQL + `)` + newestSQL + `
	) entry ON true
	WHERE account.user_id = $1 AND account.number = $2`

const (
	untilSQL = `
			SELECT seq, balance_after, created_at FROM transactions
			WHERE account_id = account.id AND created_at <= coalesce($3::timestamptz, 'infinity')`
	newestSQL = ` ORDER BY created_at DESC LIMIT 1`
)

// errOpen is returned for a time at which the account may still get transactions.
var errOpen = errors.New("the history is still open at this time")

// Balance reads the balance after the last transaction at or before a time, to the microsecond. A zero
// at stands for now. For now and for a future time, Balance.At is the time for which the answer
// holds. The balance at a time never changes once returned. ledger.ErrAccountNotFound where the user
// has no such account.
//
// Most balances are final when they are read. For a later time, closeUntil first writes that time, so
// that no later transaction gets it. It does so at most once a second for an account whose current
// balance is read all the time.
func (s *Statements) Balance(ctx context.Context, account ledger.Owned, at time.Time) (Balance, error) {
	var balance Balance
	var err error
	if at.IsZero() {
		balance, err = readPool(ctx, s.primary, probe(account, nil)) // times come from one clock, the primary's
	} else {
		balance, err = read(ctx, s, account, probe(account, &at))
	}
	if errors.Is(err, errOpen) {
		if at, err = s.closeUntil(ctx, account, at); err == nil {
			balance, err = readPool(ctx, s.primary, probe(account, &at))
		}
	}
	if err != nil {
		return Balance{}, fmt.Errorf("read balance: %w", err)
	}
	return balance, nil
}

// probe reads the balance at a time, or now where at is nil; errOpen where it may still change.
func probe(account ledger.Owned, at *time.Time) reading[Balance] {
	return func(ctx context.Context, conn *pgxpool.Conn) (balance Balance, err error) {
		defer conn.Release()
		var stays bool
		rows, _ := conn.Query(ctx, BalanceSQL, account.UserID, account.Number, at) // CollectExactlyOneRow returns its error
		balance, err = pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, func(row pgx.CollectableRow) (b Balance, err error) {
			err = row.Scan(&b.Currency, &b.Seq, &b.Balance, &b.At, &stays)
			return b, err
		}))
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			err = ledger.ErrAccountNotFound
		case err == nil && !stays:
			err = errOpen
		}
		return balance, err
	}
}

// closeUntil ensures that the account gets no more transactions at or before a time, and returns that
// time: at, or now where at is zero or in the future. It waits for the account's lock, up to
// Postgres's lock_timeout, and so for the end of an apply that has set its transaction's time. A
// later apply sets a later time.
//
// It holds a connection while it waits, unlike postgres.LockRetries: an apply and a close hold the
// lock for one short transaction each, and a request that only tries the lock of a busy account
// would wait longer.
//
// A crash after the commit leaves a closed time for which no balance was returned.
func (s *Statements) closeUntil(ctx context.Context, account ledger.Owned, at time.Time) (time.Time, error) {
	const sql = `SELECT close_history($1, $2, $3)`
	var asked *time.Time
	if !at.IsZero() {
		asked = &at
	}
	var until *time.Time
	err := s.primary.QueryRow(ctx, sql, account.UserID, account.Number, asked).Scan(&until)
	switch {
	case err != nil:
		return time.Time{}, fmt.Errorf("close history: %w", err)
	case until == nil:
		return time.Time{}, ledger.ErrAccountNotFound
	case at.IsZero() || at.After(*until):
		return *until, nil
	}
	return at, nil
}
