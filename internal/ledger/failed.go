package ledger

import (
	"context"
	"fmt"
)

// MaxFailedCounted bounds CountFailed: more than so many failed jobs are counted as so many.
const MaxFailedCounted = 1000

// CountFailed counts the failed jobs, which wait for an operator, MaxFailedCounted at most:
// also those whose end no worker has heard of.
func (a *Applier) CountFailed(ctx context.Context) (n int, err error) {
	const sql = `SELECT count(*) FROM (SELECT FROM failures LIMIT $1) failed`
	if err := a.pool.QueryRow(ctx, sql, MaxFailedCounted).Scan(&n); err != nil {
		return 0, fmt.Errorf("count failed jobs: %w", err)
	}
	return n, nil
}
