package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
)

// ErrNotFailed is returned for a replay of jobs of which one is not failed.
var ErrNotFailed = errors.New("not a failed job")

// Replay queues failed jobs again, at the positions that they had. An operator replays them
// once the reason is fixed. On an error, as ErrNotFailed, it replays none of them.
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
