package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

// MaxAttempts is how often a job is tried that Postgres refuses for a reason
// of the job's own, before it ends failed and its account goes on.
const MaxAttempts = 5

// ErrRefused wraps the error of a job that Postgres refused for a reason of the
// job's own; the attempt is counted.
var ErrRefused = errors.New("job refused")

// tryTimeout bounds a tryHead, which takes several round trips.
const tryTimeout = 2 * postgres.RoundTripTimeout

// tryHead counts an attempt of the account's oldest queued job and applies it
// once more, to learn whether it is that job that Postgres refuses. When it is,
// the last of MaxAttempts ends it failed, and it is answered. (An account that has
// lost its row has no lock: of two at once the rules refuse one.)
//
// The lock holds off every other apply, and an operator's Replay, but not an accept that
// drew an older position and is committed late: that puts its job in front at any moment.
// So the transaction is REPEATABLE READ: the count, the try and the end see the queue as it
// was when the transaction began. Where another apply has changed it since, Postgres
// reports a serialization failure and InTx begins again.
//
// A kill before the commit leaves the attempt uncounted and the job as it was;
// one after it leaves it counted, and the job queued or failed.
func (a *Applier) tryHead(ctx context.Context, ticket uuid.UUID) (tried []Applied, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var refusal error
	err = postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, lockSQL, ticket); err != nil {
			return err
		}
		failpoint.Hit(failpoint.AttemptLocked)
		var job uuid.UUID // that is tried
		var attempts int
		if err := tx.QueryRow(ctx, countSQL, ticket).Scan(&job, &attempts); err != nil {
			return err
		}
		failpoint.Hit(failpoint.AttemptCounted)
		refusal = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) (err error) {
			tried, err = queryApplied(ctx, savepoint, retrySQL, ticket, MaxAmount)
			return err
		})
		failpoint.Hit(failpoint.AttemptMade)
		if !postgres.IsDataFault(refusal) || attempts < MaxAttempts {
			return notRefusal(refusal)
		}
		tried, err = queryApplied(ctx, tx, failSQL, job)
		failpoint.Hit(failpoint.AttemptFailed)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows): // somebody else has applied it meanwhile
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("try job %s once more: %w", ticket, err)
	}
	failpoint.Hit(failpoint.AttemptCommitted)
	if refusal != nil && len(tried) == 0 {
		return nil, fmt.Errorf("apply job %s: %w: %w", ticket, ErrRefused, refusal)
	}
	return tried, nil
}

// notRefusal is the error that undoes the whole transaction: a refusal undoes
// the savepoint alone, and the attempt stays counted.
func notRefusal(err error) error {
	if postgres.IsDataFault(err) {
		return nil
	}
	return err
}

// lockSQL holds every other apply of the account off until the transaction ends.
//
// $1 the ticket's job.
const lockSQL = `
	SELECT FROM accounts WHERE id = (SELECT account_id FROM jobs WHERE id = $1) FOR NO KEY UPDATE`

// retrySQL is applySQL, without counting. One row, the job; none where no job up to the
// ticket's was queued.
const retrySQL = `
	SELECT job, kind, outcome, accepted, finished FROM apply_job($1, $2, 0) WHERE job IS NOT NULL`

// countSQL counts an attempt of the account's oldest queued job, if that is the ticket's or
// an older one: one step into the queue.
//
// $1 the ticket's job. One row, the counted job and its attempts so far; none where no job
// up to the ticket's is queued.
const countSQL = `
	UPDATE queue SET attempts = queue.attempts + 1
	FROM jobs ticket LEFT JOIN accounts account ON account.id = ticket.account_id, LATERAL (
			SELECT account_id, position FROM queue
			WHERE account_id = ticket.account_id AND position <= ticket.position
				AND position > CASE WHEN ticket.position > account.done_to THEN account.done_to ELSE 0 END
			ORDER BY position
			LIMIT 1
	) oldest
	WHERE ticket.id = $1 AND queue.account_id = oldest.account_id AND queue.position = oldest.position
	RETURNING queue.job_id, queue.attempts`

// failSQL ends a queued job failed. Money does not move.
//
// $1 the job. One row, the job.
const failSQL = `
	WITH failed AS (
		INSERT INTO failures (account_id, position, job_id, attempts, finished_at, failure)
		SELECT account_id, position, job_id, attempts, greatest(clock_timestamp(), created_at), 'internal_error'
		FROM jobs JOIN queue USING (account_id, position)
		WHERE id = $1
		RETURNING job_id, finished_at
	)
	SELECT id, type, 'failed', created_at, failed.finished_at FROM failed JOIN jobs ON id = job_id WHERE id = $1`

func queryApplied(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]Applied, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Applied])
}
