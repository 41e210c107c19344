package job

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Depth is an account's queue: how many jobs it has, and how long its oldest one waits.
type Depth struct {
	AccountID int64
	Account   string // its number; empty where its row is missing
	Jobs      int
	Oldest    time.Duration // by Postgres's clock
}

// depthsSQL reads the whole queue once.
const depthsSQL = `
	SELECT account.id, coalesce(accounts.number, ''), account.jobs, coalesce(clock_timestamp() - job.created_at, '0')
	FROM (SELECT account_id AS id, count(*) AS jobs, min(position) AS oldest FROM queue GROUP BY account_id) account
		JOIN queue ON queue.account_id = account.id AND queue.position = account.oldest
		LEFT JOIN jobs job ON job.id = queue.job_id
		LEFT JOIN accounts ON accounts.id = account.id`

// Depths calls each for every account that has queued jobs. It streams them, so its memory is
// bounded.
func Depths(ctx context.Context, pool *pgxpool.Pool, each func(Depth)) error {
	rows, _ := pool.Query(ctx, depthsSQL) // ForEachRow returns its error
	var d Depth
	if _, err := pgx.ForEachRow(rows, []any{&d.AccountID, &d.Account, &d.Jobs, &d.Oldest}, func() error {
		each(d)
		return nil
	}); err != nil {
		return fmt.Errorf("read the queue: %w", err)
	}
	return nil
}
