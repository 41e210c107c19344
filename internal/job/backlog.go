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

// OldestQueued is an account's oldest queued job.
type OldestQueued struct {
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

// While a snapshot is held, the index of the queue keeps the entries of all jobs that have
// finished since the snapshot began. For each entry that a scan meets, Postgres reads the row to
// learn that it is gone. So each statement names a position if it can: Postgres skips the
// entries below it in the index, some hundred a page.

// oldestQueuedSQL reads one row of the queue for each account, however many jobs the account has.
// A partial restore may leave a row of the queue without its job. That row is on the page too: a
// short page would look like the last one.
//
// $1 the account id to go on after, $2 the position above which jobs are looked for, $3 how
// many accounts.
const oldestQueuedSQL = `
	WITH RECURSIVE oldest AS (
		(SELECT account_id, job_id, position FROM queue
			WHERE account_id > $1 AND position > $2 ORDER BY account_id, position LIMIT 1)
		UNION ALL
		SELECT next.* FROM oldest, LATERAL (SELECT account_id, job_id, position FROM queue
			WHERE account_id > oldest.account_id AND position > $2 ORDER BY account_id, position LIMIT 1) next
	)
	SELECT page.account_id, job_id, page.position, coalesce(clock_timestamp() - created_at, '0')
	FROM (SELECT * FROM oldest LIMIT $3) page LEFT JOIN jobs ON id = job_id
	ORDER BY page.account_id`

// OldestQueued reads the oldest queued job above a position of up to limit accounts, in the
// order of the accounts' ids, after the account with the id after.
func (b *Backlog) OldestQueued(ctx context.Context, after, above int64, limit int) ([]OldestQueued, error) {
	rows, _ := b.pool.Query(ctx, oldestQueuedSQL, after, above, limit) // CollectRows returns its error
	oldest, err := pgx.CollectRows(rows, pgx.RowToStructByPos[OldestQueued])
	if err != nil {
		return nil, fmt.Errorf("find queued jobs: %w", err)
	}
	return oldest, nil
}

// nextOldestSQL reads one row of the queue for each account.
//
// $1 the accounts' ids, $2 the positions of the jobs that were their
// oldest queued ones, as arrays.
const nextOldestSQL = `
	SELECT next.* FROM unnest($1::bigint[], $2::bigint[]) known (account_id, position),
		LATERAL (SELECT queue.account_id, job_id, queue.position, coalesce(clock_timestamp() - created_at, '0')
			FROM queue LEFT JOIN jobs ON id = job_id
			WHERE queue.account_id = known.account_id AND queue.position >= known.position
			ORDER BY queue.position LIMIT 1) next`

// NextOldestQueued reads the oldest queued job of each known account again. It looks from the known
// job's position on, so it misses an older job that was replayed meanwhile. It leaves out accounts
// without a queued job.
func (b *Backlog) NextOldestQueued(ctx context.Context, known []OldestQueued) ([]OldestQueued, error) {
	accounts, positions := unzip(known)
	rows, _ := b.pool.Query(ctx, nextOldestSQL, accounts, positions) // CollectRows returns its error
	oldest, err := pgx.CollectRows(rows, pgx.RowToStructByPos[OldestQueued])
	if err != nil {
		return nil, fmt.Errorf("find the next queued jobs: %w", err)
	}
	return oldest, nil
}

func unzip(oldest []OldestQueued) (accounts, positions []int64) {
	for _, job := range oldest {
		accounts, positions = append(accounts, job.AccountID), append(positions, job.Position)
	}
	return accounts, positions
}

// Newest returns the highest position that a job has drawn; 0 before the first.
func (b *Backlog) Newest(ctx context.Context) (position int64, err error) {
	if err := b.pool.QueryRow(ctx, `SELECT last_value - (NOT is_called)::int FROM job_positions`).Scan(&position); err != nil {
		return 0, fmt.Errorf("find the newest position: %w", err)
	}
	return position, nil
}

// lastSQL reads the newest queued job of an account.
//
// $1 the account's id, $2 the position of its oldest queued job.
const lastSQL = `
	SELECT job_id FROM queue WHERE account_id = $1 AND position >= $2
	ORDER BY position DESC LIMIT 1`

// Last returns the newest queued job of the account whose oldest queued job is given. It returns
// ErrNotFound if no job of the account is queued.
func (b *Backlog) Last(ctx context.Context, oldest OldestQueued) (id uuid.UUID, err error) {
	rows, _ := b.pool.Query(ctx, lastSQL, oldest.AccountID, oldest.Position) // CollectExactlyOneRow returns its error
	id, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[uuid.UUID])
	if errors.Is(err, pgx.ErrNoRows) {
		return id, ErrNotFound
	}
	if err != nil {
		return id, fmt.Errorf("find the newest queued job: %w", err)
	}
	return id, nil
}

// unlockedSQL locks the accounts until the statement ends. Until then the same statement of
// another worker skips these accounts, so that the two workers share the work. It also returns
// the jobs of an account that has lost its row: they must fail rather than wait for ever.
//
// $1 the accounts' ids, $2 the positions of their oldest queued jobs, as arrays.
const unlockedSQL = `
	WITH unlocked AS (SELECT id FROM accounts WHERE id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED)
	SELECT oldest.account_id, newest.job_id
	FROM unnest($1::bigint[], $2::bigint[]) oldest (account_id, position),
		LATERAL (SELECT job_id FROM queue WHERE account_id = oldest.account_id AND position >= oldest.position
			ORDER BY position DESC LIMIT 1) newest
	WHERE oldest.account_id IN (SELECT id FROM unlocked)
		OR NOT EXISTS (SELECT FROM accounts WHERE id = oldest.account_id)`

// NewestQueued is an account's newest queued job.
type NewestQueued struct {
	AccountID int64
	JobID     uuid.UUID
}

// Unlocked returns the newest queued job of each account whose oldest queued job is given. It
// leaves out accounts without a queued job, and accounts that a transaction has locked, so that
// its caller need not wait for a lock. It includes accounts that have lost their rows.
func (b *Backlog) Unlocked(ctx context.Context, oldest []OldestQueued) ([]NewestQueued, error) {
	accounts, positions := unzip(oldest)
	rows, _ := b.pool.Query(ctx, unlockedSQL, accounts, positions) // CollectRows returns its error
	newest, err := pgx.CollectRows(rows, pgx.RowToStructByPos[NewestQueued])
	if err != nil {
		return nil, fmt.Errorf("find the newest queued jobs: %w", err)
	}
	return newest, nil
}
