package ledger

import (
	"context"
	"fmt"
)

// MaxFailedCounted bounds CountFailed, which returns it where more jobs are failed.
const MaxFailedCounted = 1000

// CountFailed counts the failed jobs, which wait for an operator, MaxFailedCounted at most. It
// also counts the jobs whose failure no worker has logged, because it crashed after the commit.
func (a *Applier) CountFailed(ctx context.Context) (n int, err error) {
	const sql = `SELECT count(*) FROM (SELECT FROM failures LIMIT $1) failed`
	if err := a.pool.QueryRow(ctx, sql, MaxFailedCounted).Scan(&n); err != nil {
		return 0, fmt.Errorf("count failed jobs: %w", err)
	}
	return n, nil
}
