package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Overview is what an operator sees of an account.
type Overview struct {
	Account
	Failed  int           // jobs
	Queued  int           // jobs, maxOverview at most
	Oldest  *OverviewJob  // the oldest queued job
	Lock    *OverviewLock // nil where no transaction has locked the account
	Actions []Action      // the newest maxActions, the newest first
}

// OverviewJob is an account's oldest queued job.
type OverviewJob struct {
	ID       uuid.UUID
	Type     EntryType
	Amount   int64 // minor units
	Age      time.Duration
	Attempts int // that Postgres has refused
}

// OverviewLock is the transaction that has locked an account. Its fields are empty where the
// role may not see other roles' sessions.
type OverviewLock struct {
	PID         int
	Application string
	State       string
	Age         time.Duration // of the transaction
}

// Action is a row of operator_actions.
type Action struct {
	At     time.Time
	Action string
	JobID  *uuid.UUID // of a replay
	Person string
	Role   string // of the database
	Reason string
}

// Bounds of an overview.
const (
	maxOverview = 100_000
	maxActions  = 20
)

const (
	// $1 the account's number, $2 maxOverview. The account, its failed and its queued jobs.
	overviewSQL = `SELECT ` + accountColumns + `, (SELECT count(*) FROM failures WHERE account_id = accounts.id),
			(SELECT count(*) FROM (SELECT FROM queue WHERE account_id = accounts.id LIMIT $2) queued)
		FROM accounts WHERE number = $1`

	// $1 the account. One row, or none.
	overviewJobSQL = `
		SELECT job.id, job.type, job.amount, clock_timestamp() - job.created_at, oldest.attempts
		FROM (SELECT job_id, attempts FROM queue WHERE account_id = $1 ORDER BY position LIMIT 1) oldest JOIN jobs job ON job.id = oldest.job_id`

	// The row's xmax is the id of the transaction that changes or locks the row, and each transaction
	// holds a lock on its own id while it runs. If several transactions share the row's lock, xmax is
	// the number of their group, and this statement does not find them.
	//
	// $1 the account. One row, or none.
	overviewLockSQL = `
		SELECT locks.pid, coalesce(activity.application_name, ''), coalesce(activity.state, ''), coalesce(clock_timestamp() - activity.xact_start, '0')
		FROM accounts JOIN pg_locks locks ON locks.locktype = 'transactionid' AND locks.granted AND locks.transactionid = accounts.xmax
			LEFT JOIN pg_stat_activity activity USING (pid)
		WHERE accounts.id = $1 LIMIT 1`

	// $1 the account, $2 maxActions.
	actionsSQL = `SELECT at, action::text, job_id, person, role, reason FROM operator_actions WHERE account_id = $1 ORDER BY at DESC LIMIT $2`
)

// Account reads the overview of an account; ErrAccountNotFound for an unknown number. Its
// statements share a snapshot.
func (o *Operator) Account(ctx context.Context, number string) (view Overview, err error) {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, o.pool, snapshot, func(tx pgx.Tx) (err error) {
		a := &view.Account
		if err := tx.QueryRow(ctx, overviewSQL, number, maxOverview).
			Scan(&a.ID, &a.Number, &a.Currency, &a.Balance, &a.LastSeq, &a.Status, &a.CreatedAt, &view.Failed, &view.Queued); err != nil {
			return err
		}
		if view.Oldest, err = optional[OverviewJob](ctx, tx, overviewJobSQL, a.ID); err != nil {
			return err
		}
		if view.Lock, err = optional[OverviewLock](ctx, tx, overviewLockSQL, a.ID); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, actionsSQL, a.ID, maxActions) // CollectRows returns its error
		view.Actions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Action])
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrAccountNotFound
	}
	if err != nil {
		return Overview{}, fmt.Errorf("read account %s: %w", number, err)
	}
	return view, nil
}

// optional reads the one row of a statement; nil where there is none.
func optional[T any](ctx context.Context, tx pgx.Tx, sql string, args ...any) (*T, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectExactlyOneRow returns its error
	row, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByPos[T])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // no row is no error here
	}
	return row, err
}
