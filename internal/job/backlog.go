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
	Position  int64
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

// The index entries of jobs that finished since the oldest snapshot began stay in
// the queue for as long as that snapshot is held. For a scan that meets one, Postgres
// reads the row to learn that it is gone. So each statement names a position
// where it can: entries before that are passed over in the index, some hundred a page.

// headsSQL probes the queue once an account, however long the account's queue.
//
// $1 the account id to go on after, $2 the position above which jobs are looked for, $3 how
// many accounts.
const headsSQL = `
	WITH RECURSIVE heads AS (
		(SELECT account_id, job_id, position FROM queue
			WHERE account_id > $1 AND position > $2 ORDER BY account_id, position LIMIT 1)
		UNION ALL
		SELECT next.* FROM heads, LATERAL (SELECT account_id, job_id, position FROM queue
			WHERE account_id > heads.account_id AND position > $2 ORDER BY account_id, position LIMIT 1) next
	)
	SELECT heads.account_id, job_id, heads.position, clock_timestamp() - created_at FROM heads JOIN jobs ON id = job_id LIMIT $3`

// Heads reads the oldest queued job above a position of up to limit accounts, in the
// order of the accounts' ids, after the account with the id after.
func (b *Backlog) Heads(ctx context.Context, after, above int64, limit int) ([]Head, error) {
	rows, _ := b.pool.Query(ctx, headsSQL, after, above, limit) // CollectRows returns its error
	heads, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Head])
	if err != nil {
		return nil, fmt.Errorf("find queued jobs: %w", err)
	}
	return heads, nil
}

// nextHeadsSQL: $1 the accounts' ids, $2 the positions of the jobs that were their
// oldest queued ones, as arrays.
const nextHeadsSQL = `
	SELECT next.* FROM unnest($1::bigint[], $2::bigint[]) known (account_id, position),
		LATERAL (SELECT queue.account_id, job_id, queue.position, clock_timestamp() - created_at FROM queue JOIN jobs ON id = job_id
			WHERE queue.account_id = known.account_id AND queue.position >= known.position
			ORDER BY queue.position LIMIT 1) next`

// NextHeads reads what became of heads that were read before: the oldest queued job of
// each of their accounts that has one. It misses one that was replayed meanwhile.
func (b *Backlog) NextHeads(ctx context.Context, known []Head) ([]Head, error) {
	accounts, positions := unzip(known)
	rows, _ := b.pool.Query(ctx, nextHeadsSQL, accounts, positions) // CollectRows returns its error
	heads, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Head])
	if err != nil {
		return nil, fmt.Errorf("find the next queued jobs: %w", err)
	}
	return heads, nil
}

func unzip(heads []Head) (accounts, positions []int64) {
	for _, head := range heads {
		accounts, positions = append(accounts, head.AccountID), append(positions, head.Position)
	}
	return accounts, positions
}

// Newest is the highest position that was given to a job; 0 before the first.
func (b *Backlog) Newest(ctx context.Context) (position int64, err error) {
	if err := b.pool.QueryRow(ctx, `SELECT last_value - (NOT is_called)::int FROM job_positions`).Scan(&position); err != nil {
		return 0, fmt.Errorf("find the newest position: %w", err)
	}
	return position, nil
}

// lastSQL: $1 the account's id, $2 the position of its oldest queued job.
const lastSQL = `
	SELECT job_id FROM queue WHERE account_id = $1 AND position >= $2
	ORDER BY position DESC LIMIT 1`

// Last is the newest queued job of the head's account; ErrNotFound where there is none.
func (b *Backlog) Last(ctx context.Context, head Head) (id uuid.UUID, err error) {
	rows, _ := b.pool.Query(ctx, lastSQL, head.AccountID, head.Position) // CollectExactlyOneRow returns its error
	id, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[uuid.UUID])
	if errors.Is(err, pgx.ErrNoRows) {
		return id, ErrNotFound
	}
	if err != nil {
		return id, fmt.Errorf("find the newest queued job: %w", err)
	}
	return id, nil
}

// unlockedSQL: the lock ends with the statement. Until then the same statement of
// another worker passes over these accounts, so that the two share the work. An account
// that has lost its row has no lock, and jobs that must fail rather than wait for ever.
//
// $1 the accounts' ids, $2 the positions of their oldest queued jobs, as arrays.
const unlockedSQL = `
	WITH unlocked AS (SELECT id FROM accounts WHERE id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED)
	SELECT newest.job_id
	FROM unnest($1::bigint[], $2::bigint[]) head (account_id, position),
		LATERAL (SELECT job_id FROM queue WHERE account_id = head.account_id AND position >= head.position
			ORDER BY position DESC LIMIT 1) newest
	WHERE head.account_id IN (SELECT id FROM unlocked)
		OR NOT EXISTS (SELECT FROM accounts WHERE id = head.account_id)`

// Unlocked returns the newest queued job of each of the heads' accounts that has one and
// that no transaction holds locked, so that its caller need not wait for a lock; and
// those of accounts that have lost their rows.
func (b *Backlog) Unlocked(ctx context.Context, heads []Head) ([]uuid.UUID, error) {
	accounts, positions := unzip(heads)
	rows, _ := b.pool.Query(ctx, unlockedSQL, accounts, positions) // CollectRows returns its error
	jobs, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("find the newest queued jobs: %w", err)
	}
	return jobs, nil
}
