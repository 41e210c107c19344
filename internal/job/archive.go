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
	// archiveBatch is how many jobs a step reads, and bounds how many move in one
	// transaction: Postgres's lock table must hold a lock for each.
	archiveBatch = 500
	// archiveTimeout bounds a step, which an interrupt does not cut short.
	archiveTimeout = time.Minute
	// minArchiveAge is how old a job must be. A client may still poll for a younger one, or
	// send its key again, and a task may name it: each would cost a second statement.
	minArchiveAge = 30 * 24 * time.Hour
	// clockSlack is how far ahead an API's clock may have been when it made a job's id. If it was
	// further ahead, the job stays until a later run.
	clockSlack = time.Hour
)

// ErrTooRecent is returned for a time that is too recent: clients may still ask for its jobs.
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
		return time.Time{}, fmt.Errorf("%s is %w: clients may still ask for jobs that recent", text, ErrTooRecent)
	}
	return before, nil
}

// Archive moves the jobs that succeeded or were rejected before a time from jobs to
// archived_jobs, where every read still finds them, and returns how many it moved. Failed jobs
// stay: an operator can replay them. Archive calls progress after each step.
//
// It walks by id. Ids are UUIDv7, so old jobs stand together at the beginning of the primary
// key. Each step reads archiveBatch jobs there at most, even if few of them move. After each step
// Archive pauses for as long as the step took, so that accepts and applies have half of the disk.
// When ctx ends it finishes its step.
//
// A kill undoes the current step or leaves it done. The jobs that earlier steps moved stay
// moved, and another run moves the remaining ones. The same holds after an error.
func Archive(ctx context.Context, pool *pgxpool.Pool, before time.Time, progress func(moved int64)) (moved int64, err error) {
	var after uuid.UUID
	for ctx.Err() == nil {
		started := time.Now()
		next, n, err := archiveStep(ctx, pool, after, before)
		if err != nil {
			return moved, fmt.Errorf("archive jobs: %w", err)
		}
		if next == after { // no job was left
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
// $1 and $2 the ids between which the jobs are, $3 the time before which a job must have
// finished to move, $4 how many jobs. Their ids, users and keys, and whether they move.
const stepSQL = `
	SELECT id, user_id, idempotency_key, status IN ('succeeded', 'rejected') AND finished_at < $3
	FROM job_states WHERE id > $1 AND id < $2 ORDER BY id LIMIT $4`

// takeSQL locks the keys of the jobs that move, so that no insert of such a key is under way.
// While they are locked, accept_jobs refuses the keys; a request that is repeated after the move
// sees the archive. takeSQL does not wait: a job whose key is locked stays for a later run. A
// lock on the whole table would wait for every vacuum of it, and delay all accepts and applies.
//
// $1 the jobs' ids, $2 their keys' locks, as arrays. The ids of the jobs to move.
const takeSQL = `SELECT id FROM unnest($1::uuid[], $2::bigint[]) AS job (id, lock) WHERE pg_try_advisory_xact_lock(lock)`

// moveSQL moves jobs whose keys are locked: migrations/00001_schema.sql. They are finished
// for good and have not changed since stepSQL; another run may have moved them. The database
// refuses to delete a job that the archive does not hold with every column.
//
// $1 their ids. How many it moved.
const moveSQL = `SELECT archive_jobs($1)`

// archiveStep reads the jobs after an id and moves those that finished before a
// time, in one transaction. It returns the last job that it has read, or after
// where there was no job.
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

// firstID returns the id that sorts before every UUIDv7 that was made at a time or later.
func firstID(at time.Time) (id uuid.UUID) {
	const timeBits = 48
	binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<(64-timeBits))
	return id
}
