package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
)

// ErrNotFailed is returned for a replay of jobs that are not all failed ones.
var ErrNotFailed = errors.New("not a failed job")

// Replay puts failed jobs back in line, at the place they had: an operator's
// decision, once the reason is mended. All of them, or none and ErrNotFailed.
func (a *Applier) Replay(ctx context.Context, ids []uuid.UUID) error {
	const sql = `
		DELETE FROM failures USING jobs job
		WHERE job.id = $1 AND failures.account_id = job.account_id AND failures.position = job.position`
	return postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
		for _, id := range ids {
			tag, err := tx.Exec(ctx, sql, id)
			if err == nil && tag.RowsAffected() == 0 {
				err = ErrNotFailed
			}
			if err != nil {
				return fmt.Errorf("replay job %s: %w", id, err)
			}
		}
		return nil
	})
}
