package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Head is an account's oldest queued job.
type Head struct {
	AccountID int64
	JobID     uuid.UUID
	Age       time.Duration // since its accept, by Postgres's clock
}

// Backlog finds queued jobs.
type Backlog struct {
	pool *pgxpool.Pool
}

// NewBacklog finds the queued jobs in the database behind pool.
func NewBacklog(pool *pgxpool.Pool) *Backlog {
	return &Backlog{pool: pool}
}

// Heads reads the heads of up to limit accounts with queued jobs, in the order
// of the accounts' ids, after the one with the id after.
func (b *Backlog) Heads(ctx context.Context, after int64, limit int) ([]Head, error) {
	// One probe of jobs_queue an account, however long the account's queue.
	const sql = `
		WITH RECURSIVE heads AS (
			(SELECT account_id, id, created_at FROM jobs
				WHERE status = 'queued' AND account_id > $1 ORDER BY account_id, position LIMIT 1)
			UNION ALL
			SELECT next.* FROM heads, LATERAL (SELECT account_id, id, created_at FROM jobs
				WHERE status = 'queued' AND account_id > heads.account_id ORDER BY account_id, position LIMIT 1) next
		)
		SELECT account_id, id, clock_timestamp() - created_at FROM heads LIMIT $2`
	rows, _ := b.pool.Query(ctx, sql, after, limit) // CollectRows returns its error
	heads, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Head])
	if err != nil {
		return nil, fmt.Errorf("find queued jobs: %w", err)
	}
	return heads, nil
}

// Last is the newest queued job of an account; ErrNotFound where there is none.
func (b *Backlog) Last(ctx context.Context, accountID int64) (id uuid.UUID, err error) {
	const sql = `SELECT id FROM jobs WHERE account_id = $1 AND status = 'queued' ORDER BY position DESC LIMIT 1`
	rows, _ := b.pool.Query(ctx, sql, accountID) // CollectExactlyOneRow returns its error
	id, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[uuid.UUID])
	if errors.Is(err, pgx.ErrNoRows) {
		return id, ErrNotFound
	}
	if err != nil {
		return id, fmt.Errorf("find the newest queued job: %w", err)
	}
	return id, nil
}

// Unlocked returns the newest queued job of each of the accounts that has one and
// that no transaction holds locked, so that its caller need not wait for a lock.
func (b *Backlog) Unlocked(ctx context.Context, accounts []int64) ([]uuid.UUID, error) {
	// The lock ends with the statement. Until then the same statement of another
	// worker passes over these accounts, so that the two share the work.
	const sql = `
		SELECT newest.id FROM (SELECT id FROM accounts WHERE id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED) account,
			LATERAL (SELECT id FROM jobs WHERE account_id = account.id AND status = 'queued' ORDER BY position DESC LIMIT 1) newest`
	rows, _ := b.pool.Query(ctx, sql, accounts) // CollectRows returns its error
	jobs, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("find the newest queued jobs: %w", err)
	}
	return jobs, nil
}
