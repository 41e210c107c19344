package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
)

// ErrSequenceBehind is returned for a database whose sequences would give a number again, as
// after logical replication or a partial restore. A later job would then overtake older queued
// ones, and an account would get the id of another account.
var ErrSequenceBehind = fmt.Errorf("%w: sequence behind its table", postgres.ErrUnsuitable)

// Bounds of the check at start; verify and migrate read all rows.
const (
	// newestJobs is how many of the newest jobs by id the check reads. Ids follow the clock of the
	// API, positions follow the sequence; their orders differ only among accepts at the same time.
	newestJobs = 10_000
	// checkedQueued is how many queued jobs the check reads: a long backlog that is not cached
	// must not delay the start of a process.
	checkedQueued = 10_000
)

// Each statement reads its sequence after it has taken its snapshot. So the next number is higher
// than every number that the snapshot shows, unless the sequence is behind.
//
// One row a sequence: its name, its next number, the highest number in use.
const (
	accountIDsSQL = `
		SELECT 'accounts_id_seq', last_value + is_called::int, greatest(
			(SELECT max(id) FROM accounts),
			(SELECT max(account_id) FROM transactions),
			(SELECT max(account_id) FROM queue),
			(SELECT max(account_id) FROM rejections),
			(SELECT max(account_id) FROM failures),
			(SELECT max(account_id) FROM archived_jobs WHERE status = 'rejected'), 0)
		FROM accounts_id_seq`

	// $1 newestJobs, $2 checkedQueued.
	startSQL = accountIDsSQL + `
		UNION ALL
		SELECT 'job_positions', last_value + is_called::int, greatest(
			(SELECT max(position) FROM (SELECT position FROM jobs ORDER BY id DESC LIMIT $1) newest),
			(SELECT max(position) FROM (SELECT position FROM archived_jobs ORDER BY id DESC LIMIT $1) newest),
			(SELECT max(position) FROM (SELECT position FROM queue LIMIT $2) queued), 0)
		FROM job_positions`

	sequencesSQL = accountIDsSQL + `
		UNION ALL
		SELECT 'job_positions', last_value + is_called::int, greatest(
			(SELECT max(position) FROM jobs), (SELECT max(position) FROM archived_jobs), 0)
		FROM job_positions`
)

type sequence struct {
	Name string
	Next int64
	Used int64 // the highest
}

func (s sequence) behind() bool { return s.Next <= s.Used }

func (s sequence) String() string {
	return fmt.Sprintf("sequence %s gives %d next, and %d is in use", s.Name, s.Next, s.Used)
}

// CheckSequences returns ErrSequenceBehind, with what to do, for a database whose sequences
// would give a number again. A process calls it at its start.
func CheckSequences(ctx context.Context, pool *pgxpool.Pool) error {
	behind, err := sequencesBehind(ctx, pool, startSQL, newestJobs, checkedQueued)
	if err != nil {
		return fmt.Errorf("check sequences: %w", err)
	}
	if len(behind) == 0 {
		return nil
	}
	var faults []string
	for _, s := range behind {
		faults = append(faults, s.String())
	}
	return fmt.Errorf("%w: %s: run `api migrate`", ErrSequenceBehind, strings.Join(faults, "; "))
}

// AwaitSequences is CheckSequences, repeated while Postgres is not available; see
// postgres.Await.
func AwaitSequences(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	return postgres.Await(ctx, pool, log, func(ctx context.Context) error { return CheckSequences(ctx, pool) })
}

// AdvanceSequences moves each sequence that is behind beyond the highest number in use, and
// returns a sentence for each that it moved. It locks the tables against inserts: the numbers
// that inserts have drawn must be visible before it moves the sequence.
//
// A kill leaves each sequence as it was, or moved.
func AdvanceSequences(ctx context.Context, pool *pgxpool.Pool) (moved []string, err error) {
	err = postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
		moved = nil
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10s'`); err != nil {
			return err
		}
		behind, err := sequencesBehind(ctx, tx, sequencesSQL)
		if err != nil || len(behind) == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, `LOCK TABLE accounts, jobs IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		if behind, err = sequencesBehind(ctx, tx, sequencesSQL); err != nil {
			return err
		}
		for _, s := range behind {
			if _, err := tx.Exec(ctx, `SELECT setval($1::text::regclass, $2)`, s.Name, s.Used); err != nil {
				return fmt.Errorf("advance %s: %w", s.Name, err)
			}
			moved = append(moved, fmt.Sprintf("%s: advanced to %d", s, s.Used+1))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("advance sequences: %w", err)
	}
	return moved, nil
}

func sequencesBehind(ctx context.Context, q querier, sql string, args ...any) (behind []sequence, err error) {
	rows, _ := q.Query(ctx, sql, args...) // CollectRows returns its error
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sequence])
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.behind() {
			behind = append(behind, s)
		}
	}
	return behind, nil
}
