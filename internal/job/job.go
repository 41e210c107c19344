// Package job accepts deposits and withdrawals and reads their states. Its promise: an
// accepted job is on disk before the client gets its 202, and an idempotency key names one job
// for good.
package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

// Status is the state of a job. docs/architecture.md draws the states and their changes.
type Status string

// The states of a job. All but the first are final, except that an operator can
// replay a failed job.
const (
	Queued    Status = "queued"
	Succeeded Status = Status(ledger.Succeeded)
	Rejected  Status = Status(ledger.Rejected)
	Failed    Status = Status(ledger.Failed)
)

// Statuses are all the states.
var Statuses = []Status{Queued, Succeeded, Rejected, Failed}

// What callers branch on.
var (
	ErrNotFound        = errors.New("job not found")
	ErrAccountNotFound = ledger.ErrAccountNotFound
	ErrAccountClosed   = ledger.ErrAccountClosed
	ErrKeyReused       = ledger.ErrKeyReused
	ErrKeyBusy         = ledger.ErrKeyBusy
	ErrQueueFull       = errors.New("account has too many queued jobs")
	ErrOverloaded      = errors.New("too many requests wait to be accepted")
	ErrUnavailable     = errors.New("jobs can't be accepted now")
)

// Job is a job with its current state.
type Job struct {
	ID           uuid.UUID
	Position     int64  // in the order of accepts
	Account      string // number
	Type         ledger.EntryType
	Amount       int64  // minor units
	Currency     string // ISO 4217, the account's
	Description  *string
	Status       Status
	Failure      *string // the code, where rejected or failed
	Seq          *int64  // of its transaction, where succeeded
	BalanceAfter *int64  // minor units, where succeeded
	CreatedAt    time.Time
	FinishedAt   *time.Time
}

const columns = `job.id, job.position, account.number, job.type, job.amount, account.currency, job.description,
	job.status, job.failure, job.seq, job.balance_after, job.created_at, job.finished_at`

// stored are the columns of job_states and of archived_jobs. Every statement that joins the rows
// of both names them, so that it works on while a migration adds a column to one table and then
// to the other. archive_jobs and refuse_unless_archived name them too.
const stored = `id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after, type, status,
	idempotency_key, description, failure`

// shownColumns are the last two columns of a read, which postgres.Showing takes.
const shownColumns = `, job.finished_by, ` + postgres.ShownSQL

// queuedBy is what a read of a queued job reports in place of finished_by; accepted is the id of
// the transaction that accepted the job. It is null if there is no synchronous standby: the commit
// was flushed before any read could see it. With one, an accept that runs out of time ends its
// wait for the standby, and reads see a job that only the primary has.
func queuedBy(accepted string) string {
	return `CASE WHEN current_setting('synchronous_standby_names') <> '' THEN ` + accepted + ` END`
}

// Reader reads jobs.
type Reader struct {
	pool *pgxpool.Pool
}

// NewReader reads the jobs in the database behind pool.
func NewReader(pool *pgxpool.Pool) *Reader {
	return &Reader{pool: pool}
}

// readSQL reads a job from jobs, and readArchivedSQL from the archive. They compare the owners
// with IS NOT DISTINCT FROM: with = the planner would read all of the user's accounts.
//
// $1 the job's id, $2 the caller.
var readSQL = selectSQL + `(SELECT ` + stored + `, coalesce(finished_by, ` + queuedBy("accepted_by") + `) AS finished_by
	FROM job_states WHERE id = $1) job ` + ownedSQL

const (
	readArchivedSQL = selectSQL + `(SELECT ` + stored + `, xmin AS finished_by FROM archived_jobs WHERE id = $1) job ` + ownedSQL

	selectSQL = `SELECT ` + columns + shownColumns + ` FROM `
	ownedSQL  = `JOIN accounts account ON account.id = job.account_id AND account.user_id IS NOT DISTINCT FROM job.user_id
	WHERE job.user_id = $2`
)

// Job reads one of the caller's jobs; ErrNotFound for a job that does not exist or
// is another user's.
//
// It looks into the archive in a second statement, only where jobs has no such job: one
// statement for both took Postgres a third longer. A job moves to the archive once and stays
// there, so the second statement sees a job that moved before the first.
func (r *Reader) Job(ctx context.Context, userID, id uuid.UUID) (Job, error) {
	job, err := r.read(ctx, readSQL, userID, id)
	if errors.Is(err, pgx.ErrNoRows) {
		job, err = r.read(ctx, readArchivedSQL, userID, id)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return Job{}, ErrNotFound
	}
	if err != nil {
		return Job{}, fmt.Errorf("read job %s: %w", id, err)
	}
	return job, nil
}

// byKeySQL reads the job of a key, from the archive too: one statement has one snapshot, in which
// a job that moves stands in one of the two tables.
//
// $1 the key, $2 the caller.
var byKeySQL = selectSQL + `(
	SELECT ` + stored + `, coalesce(finished_by, ` + queuedBy("accepted_by") + `) AS finished_by
	FROM job_states WHERE user_id = $2 AND idempotency_key = $1 UNION ALL
	SELECT ` + stored + `, xmin FROM archived_jobs WHERE user_id = $2 AND idempotency_key = $1) job ` + ownedSQL

// ByKey reads the job that one of the caller's keys has made; ErrNotFound where it has made none.
// A request with the key may be under way, and make one later.
func (r *Reader) ByKey(ctx context.Context, userID uuid.UUID, key string) (Job, error) {
	job, err := r.read(ctx, byKeySQL, userID, key)
	if errors.Is(err, pgx.ErrNoRows) {
		// The client may act on the absence. A server that was the primary and has not noticed
		// that it is no longer would show it for a job that was accepted elsewhere.
		postgres.ShowAll(ctx)
		return Job{}, ErrNotFound
	}
	if err != nil {
		return Job{}, fmt.Errorf("read job by key: %w", err)
	}
	return job, nil
}

// read reads the job that an id or a key names.
func (r *Reader) read(ctx context.Context, sql string, userID uuid.UUID, name any) (Job, error) {
	rows, _ := r.pool.Query(ctx, sql, name, userID) // CollectExactlyOneRow returns its error
	return pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[Job]))
}
