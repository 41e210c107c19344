package job

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	// archiveBatch is how many jobs are looked at in one step, and at most move in
	// one transaction: as many locks as that must find room in Postgres's memory.
	archiveBatch = 500
	// archiveTimeout bounds a step, which an interrupt does not cut short.
	archiveTimeout = time.Minute
	// minArchiveAge is how old a job must be: a client may still poll for it, or send
	// its key again, and a ticket may name it. All of them would be served, at the
	// price of a second look.
	minArchiveAge = 30 * 24 * time.Hour
	// clockSlack is how far ahead the clock of the API may have been that made a
	// job's id. One that was further ahead has its jobs stay until a later run.
	clockSlack = time.Hour
)

// ErrTooRecent is returned for a time before which jobs may still be asked for.
var ErrTooRecent = errors.New("less than 30 days ago")

// ParseArchiveBefore reads a date, which begins at midnight UTC, or an RFC 3339
// time; ErrTooRecent for one that is less than 30 days before now.
func ParseArchiveBefore(text string, now time.Time) (time.Time, error) {
	before, err := time.Parse(time.DateOnly, text)
	if err != nil {
		before, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a date like 2025-01-31 nor a time like 2025-01-31T12:00:00Z", text)
	}
	if before.After(now.Add(-minArchiveAge)) {
		return time.Time{}, fmt.Errorf("%s is %w: jobs that recent may still be asked for", text, ErrTooRecent)
	}
	return before, nil
}

// Archive moves the jobs that succeeded or were rejected before a time from jobs
// to archived_jobs, where everybody still finds them, and answers with how many.
// Failed jobs stay: they can be replayed. progress is called after each step.
//
// It walks by id. Ids are UUIDv7, so that old jobs stand together at the
// beginning of the primary key, and each step reads the next archiveBatch of them
// there, however many there are and however few of them move. Between two steps
// it rests for as long as the step took, so that accepts and applies have the
// other half of the disk. When ctx ends it finishes the step in hand.
//
// A kill at any time undoes the step in hand or leaves it done: what has moved
// has moved, and another run goes on with the rest. So it is after an error.
func Archive(ctx context.Context, pool *pgxpool.Pool, before time.Time, progress func(moved int64)) (moved int64, err error) {
	var after uuid.UUID
	for ctx.Err() == nil {
		started := time.Now()
		next, n, err := archiveStep(ctx, pool, after, before)
		if err != nil {
			return moved, fmt.Errorf("archive jobs: %w", err)
		}
		if next == after { // there was none
			return moved, nil
		}
		after, moved = next, moved+n
		progress(moved)
		select {
		case <-time.After(time.Since(started)):
		case <-ctx.Done():
		}
	}
	return moved, fmt.Errorf("archive jobs: %w", ctx.Err())
}

// stepSQL reads the next jobs in the order of their ids.
//
// $1 the id to go on after, $2 the id to end before, $3 the time before which
// they must have ended to move, $4 how many. Their ids and keys, and whether they
// move.
const stepSQL = `
	SELECT id, user_id, idempotency_key, status IN ('succeeded', 'rejected') AND finished_at < $3
	FROM job_states WHERE id > $1 AND id < $2 ORDER BY id LIMIT $4`

// takeSQL locks the keys of the jobs that move, so that no insert of one of them is
// under way. An accept of one of them meanwhile is refused by accept_jobs; asked again after
// the move, it sees the archive. The move waits for nobody: a job whose key is just
// being sent is left to a later run. A lock on the whole table would do as well, and
// wait for every vacuum of it, with all accepts and applies in line behind.
//
// $1 the jobs' ids, $2 their keys' locks, as arrays. The ids of those to move.
const takeSQL = `SELECT id FROM unnest($1::uuid[], $2::bigint[]) AS job (id, lock) WHERE pg_try_advisory_xact_lock(lock)`

// moveSQL moves jobs whose keys are locked: migrations/00001_schema.sql. They are finished
// for good and have not changed since stepSQL; another run may have moved them. The
// database lets none go that does not stand in the archive to the letter.
//
// $1 their ids. How many it moved.
const moveSQL = `SELECT archive_jobs($1)`

// archiveStep looks at the jobs after an id and moves those that ended before a
// time, in one transaction. It answers with the last job that it has looked at,
// after itself where there was none.
func archiveStep(ctx context.Context, pool *pgxpool.Pool, after uuid.UUID, before time.Time) (next uuid.UUID, moved int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), archiveTimeout)
	defer cancel()
	rows, _ := pool.Query(ctx, stepSQL, after, firstID(before.Add(clockSlack)), before, archiveBatch) // ForEachRow returns its error
	var ids []uuid.UUID
	var locks []int64
	var key jobKey
	var moves bool
	next = after
	_, err = pgx.ForEachRow(rows, []any{&next, &key.UserID, &key.Key, &moves}, func() error {
		if moves {
			ids, locks = append(ids, next), append(locks, ledger.KeyLock(key.UserID, key.Key))
		}
		return nil
	})
	if err != nil || len(ids) == 0 {
		return next, 0, err
	}
	err = postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, takeSQL, ids, locks) // CollectRows returns its error
		taken, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, moveSQL, taken).Scan(&moved)
	})
	return next, moved, err
}

// firstID is before every UUIDv7 of a time and after.
func firstID(at time.Time) (id uuid.UUID) {
	const timeBits = 48
	binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<(64-timeBits))
	return id
}
