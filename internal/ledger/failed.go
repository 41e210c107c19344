package ledger

import (
	"context"
	"fmt"
)

// MaxFailedCounted is the highest number that CountFailed returns.
const MaxFailedCounted = 1000

// CountFailed counts the failed jobs, up to MaxFailedCounted. They wait for an operator. The count
// includes jobs whose failure is in no log, because the worker crashed after the commit.
func (a *Applier) CountFailed(ctx context.Context) (n int, err error) {
	const sql = `SELECT count(*) FROM (SELECT FROM failures LIMIT $1) failed`
	if err := a.pool.QueryRow(ctx, sql, MaxFailedCounted).Scan(&n); err != nil {
		return 0, fmt.Errorf("count failed jobs: %w", err)
	}
	return n, nil
}
