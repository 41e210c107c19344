package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

// What an operator's action can't do.
var (
	ErrNotFailed = errors.New("not a failed job")
	ErrUnnamed   = errors.New("an action needs a person's name of 1 to 100 characters and a reason of 1 to 500")
)

// Operator acts on accounts and jobs for a person. An action is a row of operator_actions, whose
// trigger makes the change: migrations/00001_schema.sql.
//
// A kill before the commit of an action leaves nothing, a kill after it leaves the change with its
// row. The person who got no answer acts again, and learns that it is done.
type Operator struct {
	pool   *pgxpool.Pool
	person string
}

// NewOperator acts for a person on the database behind pool.
func NewOperator(pool *pgxpool.Pool, person string) *Operator {
	return &Operator{pool: pool, person: person}
}

// actions are the actions that give an account a status.
var actions = map[AccountStatus]string{Open: "unfreeze", Frozen: "freeze", Closed: "close"}

// SetStatus sets the status of an account. changed is false if the account had that status. It
// returns ErrAccountNotFound for an unknown number, ErrAccountClosed for a closed account.
//
// It waits for the apply that has locked the account. Each later apply sees the status.
func (o *Operator) SetStatus(ctx context.Context, number string, status AccountStatus, reason string) (changed bool, err error) {
	const sql = `
		INSERT INTO operator_actions (account_id, action, person, reason)
		SELECT id, $2::operator_action, $3, $4 FROM accounts WHERE number = $1`
	err = postgres.InTx(ctx, o.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT FROM accounts WHERE number = $1`, number).Scan(); err != nil {
			return err
		}
		changed, err = act(ctx, tx, sql, number, actions[status], o.person, reason)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrAccountNotFound
	}
	if err != nil {
		return false, fmt.Errorf("%s account %s: %w", actions[status], number, err)
	}
	failpoint.Hit(failpoint.ActionCommitted)
	return changed, nil
}

// Replay queues a failed job again, at the position that it had, once the reason of its failure is
// fixed. It returns ErrJobNotFound for an unknown job, and ErrNotFailed, with the job's status, for a
// job that is not failed.
func (o *Operator) Replay(ctx context.Context, id uuid.UUID, reason string) error {
	const sql = `
		INSERT INTO operator_actions (account_id, action, job_id, person, reason)
		SELECT account_id, 'replay', id, $2, $3 FROM jobs WHERE id = $1`
	var replayed bool
	err := postgres.InTx(ctx, o.pool, func(tx pgx.Tx) (err error) {
		replayed, err = act(ctx, tx, sql, id, o.person, reason)
		return err
	})
	if err == nil && !replayed {
		err = o.whyNotFailed(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("replay job %s: %w", id, err)
	}
	failpoint.Hit(failpoint.ActionCommitted)
	return nil
}

// act inserts an action. acted is false if there was nothing to change.
func act(ctx context.Context, tx pgx.Tx, sql string, args ...any) (acted bool, err error) {
	tag, err := tx.Exec(ctx, sql, args...)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.ConstraintName {
		case "closed_accounts_stay":
			return false, ErrAccountClosed
		case "operator_actions_person_check", "operator_actions_reason_check":
			return false, ErrUnnamed
		}
	}
	failpoint.Hit(failpoint.ActionUncommitted)
	return tag.RowsAffected() > 0, err
}

func (o *Operator) whyNotFailed(ctx context.Context, id uuid.UUID) error {
	const sql = `SELECT status::text FROM job_states WHERE id = $1 UNION ALL SELECT status::text FROM archived_jobs WHERE id = $1`
	var status string
	switch err := o.pool.QueryRow(ctx, sql, id).Scan(&status); {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrJobNotFound
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: it is %s", ErrNotFailed, status)
}

// FailedJob is a failed job as an operator sees it.
type FailedJob struct {
	ID        uuid.UUID
	Account   *string // its number; nil where a bad restore has lost the account
	Type      EntryType
	Amount    int64 // minor units
	Attempts  int
	FailedAt  time.Time
	Failure   string  // the code that the client sees
	Detail    *string // Postgres's error
	AccountIs *AccountStatus
}

// FailedJobs calls each for every failed job, in the order in which they failed. It streams the
// jobs, so its memory is bounded.
func (o *Operator) FailedJobs(ctx context.Context, each func(FailedJob)) error {
	const sql = `
		SELECT job.id, account.number, job.type, job.amount, failure.attempts, failure.finished_at, failure.failure, failure.detail, account.status
		FROM failures failure JOIN jobs job ON job.id = failure.job_id LEFT JOIN accounts account ON account.id = failure.account_id
		ORDER BY failure.finished_at, job.position`
	rows, _ := o.pool.Query(ctx, sql) // rows.Err returns its error
	defer rows.Close()
	for rows.Next() {
		job, err := pgx.RowToStructByPos[FailedJob](rows)
		if err != nil {
			return fmt.Errorf("list failed jobs: %w", err)
		}
		each(job)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list failed jobs: %w", err)
	}
	return nil
}
