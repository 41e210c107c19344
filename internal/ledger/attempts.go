package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

// MaxAttempts bounds the attempts of a job that Postgres refuses for a reason of the job's own.
// After the last attempt the job is failed, and its account goes on.
const MaxAttempts = 5

// ErrRefused wraps the error of a job that Postgres refused for a reason of the job's own; the
// attempt is counted.
var ErrRefused = errors.New("job refused")

// Refusal is the error of a job that Postgres refused. The refused job may be older than the job that
// the caller named. It wraps ErrRefused and Postgres's error.
type Refusal struct {
	JobID   uuid.UUID
	Account string // its number; empty if the account's row is missing
	Attempt int    // of MaxAttempts
	Err     error
}

// Error names the job.
func (r *Refusal) Error() string {
	return fmt.Sprintf("apply job %s: %v: %v", r.JobID, ErrRefused, r.Err)
}

// Unwrap returns ErrRefused and Postgres's error.
func (r *Refusal) Unwrap() []error { return []error{ErrRefused, r.Err} }

// attemptTimeout bounds attemptOldest, which takes several round trips.
const attemptTimeout = 2 * postgres.RoundTripTimeout

// attemptOldest counts an attempt of the oldest queued job of upTo's account and applies the
// job once more, to learn whether it is this job that Postgres refuses. It returns the job if
// the job is now finished: applied, or failed after the last of MaxAttempts. It returns
// ErrRefused if the job stays queued, and nothing if no job up to upTo is queued. (An account that
// has lost its row can't be locked. Of two attempts at once on it, a trigger refuses one.)
//
// The lock keeps out every other apply, and an operator's Replay. It does not keep out an
// accept that drew an older position and commits late: that job may become the oldest at any
// moment. So the transaction is REPEATABLE READ: the count, the attempt and the outcome see the
// queue as it was when the transaction began. If another apply has changed the queue since,
// Postgres reports a serialization failure and InTx begins again.
//
// A kill before the commit leaves the attempt uncounted and the job as it was. A kill after it
// leaves the attempt counted, and the job queued or finished.
func (a *Applier) attemptOldest(ctx context.Context, upTo uuid.UUID) (finished []Applied, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	var refusal error
	var at Refusal
	err = postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, lockSQL, upTo); err != nil {
			return err
		}
		failpoint.Hit(failpoint.AttemptLocked)
		if err := tx.QueryRow(ctx, countSQL, upTo).Scan(&at.JobID, &at.Attempt, &at.Account); err != nil {
			return err
		}
		failpoint.Hit(failpoint.AttemptCounted)
		refusal = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) (err error) {
			finished, err = queryApplied(ctx, savepoint, retrySQL, upTo, MaxAmount)
			return err
		})
		failpoint.Hit(failpoint.AttemptMade)
		if !postgres.IsDataFault(refusal) || at.Attempt < MaxAttempts {
			return notRefusal(refusal)
		}
		finished, err = queryApplied(ctx, tx, failSQL, at.JobID, detailOf(refusal))
		failpoint.Hit(failpoint.AttemptFailed)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows): // another worker has applied the jobs meanwhile
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("attempt jobs up to %s: %w", upTo, err)
	}
	failpoint.Hit(failpoint.AttemptCommitted)
	if refusal == nil {
		return finished, nil
	}
	at.Err = refusal
	if len(finished) == 0 {
		return nil, &at
	}
	finished[0].Refusal = &at
	return finished, nil
}

// notRefusal returns the error with which the whole transaction is undone. For a refusal it
// returns nil: only the savepoint is undone, and the attempt stays counted.
func notRefusal(err error) error {
	if postgres.IsDataFault(err) {
		return nil
	}
	return err
}

// lockSQL keeps out every other apply of the account until the transaction ends.
//
// $1 the named job.
const lockSQL = `
	SELECT FROM accounts WHERE id = (SELECT account_id FROM jobs WHERE id = $1) FOR NO KEY UPDATE`

// retrySQL is applySQL, but does not count the remaining jobs. One row, the job; no row if no job
// up to the named one was queued.
const retrySQL = `
	SELECT job, account, account_number, kind, outcome, accepted, finished FROM apply_job($1, $2, 0) WHERE job IS NOT NULL`

// countSQL counts an attempt of the account's oldest queued job, if that is the named job or an
// older one. It stops counting at 1,001, which is far more than MaxAttempts: an overflow of the
// column would stop the account for ever.
//
// $1 the named job. One row, the oldest job, its attempts, this one included, and the account's number;
// no row if no job up to the named one is queued.
const countSQL = `
	UPDATE queue SET attempts = least(queue.attempts, 1000) + 1
	FROM jobs named LEFT JOIN accounts account ON account.id = named.account_id, LATERAL (
			SELECT account_id, position FROM queue
			WHERE account_id = named.account_id AND position <= named.position
				AND position > CASE WHEN named.position > account.done_to THEN account.done_to ELSE 0 END
			ORDER BY position
			LIMIT 1
	) oldest
	WHERE named.id = $1 AND queue.account_id = oldest.account_id AND queue.position = oldest.position
	RETURNING queue.job_id, queue.attempts, coalesce(account.number, '')`

// failSQL moves a queued job to failed. No balance changes.
//
// $1 the job, $2 Postgres's error. One row, the job.
const failSQL = `
	WITH failed AS (
		INSERT INTO failures (account_id, position, job_id, attempts, finished_at, failure, detail)
		SELECT account_id, position, job_id, attempts, greatest(clock_timestamp(), created_at), 'internal_error', $2
		FROM jobs JOIN queue USING (account_id, position)
		WHERE id = $1
		RETURNING job_id, finished_at
	)
	SELECT id, account_id, coalesce((SELECT number FROM accounts WHERE accounts.id = account_id), ''), type, 'failed', created_at, failed.finished_at
	FROM failed JOIN jobs ON id = job_id WHERE id = $1`

// maxDetail is how many bytes of Postgres's error an operator is shown.
const maxDetail = 500

// detailOf returns the text of a refusal that a failed job keeps for the operator. It names no
// amount and no person: those stand in an error's detail, which is not part of its text.
func detailOf(refusal error) string {
	text := refusal.Error()
	return strings.ToValidUTF8(text[:min(len(text), maxDetail)], "")
}

func queryApplied(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]Applied, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Applied])
}
