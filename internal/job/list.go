package job

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

// Page asks for a part of an account's jobs.
type Page struct {
	Account   ledger.Owned
	Status    Status // all where empty
	Ascending bool   // by position; else the newest first
	After     int64  // the last position of the previous page, 0 for the first page
	Limit     int
}

// List reads a page of an account's jobs in the order in which they were
// accepted; ErrAccountNotFound where the account does not exist or is another user's.
func (r *Reader) List(ctx context.Context, page Page) ([]Job, error) {
	after := page.After
	if after == 0 && !page.Ascending {
		after = math.MaxInt64
	}
	statuses := Statuses
	if page.Status != "" {
		statuses = []Status{page.Status}
	}
	rows, _ := r.pool.Query(ctx, listSQL(statuses, page.Ascending), page.Account.UserID, page.Account.Number, after, page.Limit) // CollectRows returns its error
	jobs, err := pgx.CollectRows(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[Job]))
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	if page.Status == Queued { // a job that the list leaves out has finished
		postgres.ShowAll(ctx)
	}
	if len(jobs) == 0 {
		return nil, r.checkOwned(ctx, page.Account)
	}
	return jobs, nil
}

// checkOwned returns ErrAccountNotFound for an account that is not the caller's.
func (r *Reader) checkOwned(ctx context.Context, account ledger.Owned) error {
	const sql = `SELECT FROM accounts WHERE user_id = $1 AND number = $2`
	err := r.pool.QueryRow(ctx, sql, account.UserID, account.Number).Scan()
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrAccountNotFound
	}
	if err != nil {
		return fmt.Errorf("list jobs: %w", err)
	}
	return nil
}

// listSQL reads the jobs of each status from its own stretch of an index, in order, merges the
// stretches, and reads the requests of the jobs on the page. A single index for the unfiltered
// list would cost every accept one more entry. A job that succeeded is found by its transaction,
// even if it is archived.
//
// The statement finds the account by its owner and number, once.
//
// $1 the user, $2 the account's number, $3 the position to go on after, $4 the limit.
func listSQL(statuses []Status, ascending bool) string {
	beyond, order := "<", "DESC"
	if ascending {
		beyond, order = ">", "ASC"
	}
	var merged []string
	for _, status := range statuses {
		for _, from := range stretches[status] {
			merged = append(merged, fmt.Sprintf(`(SELECT %s WHERE account_id = (SELECT id FROM owned) AND position %s $3 %s
				ORDER BY position %s LIMIT $4)`, from.columns, beyond, from.also, order))
		}
	}
	return fmt.Sprintf(`WITH owned AS MATERIALIZED (SELECT id, number, currency FROM accounts WHERE user_id = $1 AND number = $2)
		SELECT job.id, job.position, account.number, asked.type, asked.amount, account.currency, asked.description,
			job.status, job.failure, job.seq, job.balance_after, asked.created_at, job.finished_at`+shownColumns+`
		FROM owned account, (SELECT * FROM (%s) merged ORDER BY position %s LIMIT $4) job, LATERAL (
			SELECT type, amount, description, created_at FROM jobs WHERE id = job.id UNION ALL
			SELECT type, amount, description, created_at FROM archived_jobs WHERE id = job.id LIMIT 1
		) asked
		ORDER BY job.position %[2]s`, strings.Join(merged, " UNION ALL "), order)
}

// stretch is a part of an index that holds an account's jobs of a status, by their positions.
type stretch struct {
	columns string // and the table
	also    string // a further condition of its rows
}

var stretches = map[Status][]stretch{
	Queued: {{columns: `job_id AS id, position, 'queued'::job_status AS status, NULL::text AS failure, NULL::bigint AS seq, NULL::balance AS balance_after,
		NULL::timestamptz AS finished_at, ` + queuedBy("xmin") + ` AS finished_by FROM queue`}},
	Succeeded: {{columns: `job_id AS id, position, 'succeeded'::job_status AS status, NULL::text AS failure, seq, balance_after,
		created_at AS finished_at, xmin AS finished_by FROM transactions`}},
	Rejected: {
		{columns: `job_id AS id, position, 'rejected'::job_status AS status, failure, NULL::bigint AS seq, NULL::balance AS balance_after,
			finished_at, xmin AS finished_by FROM rejections`},
		{columns: `id, position, status, failure, NULL::bigint AS seq, NULL::balance AS balance_after,
			finished_at, xmin AS finished_by FROM archived_jobs`, also: `AND status = 'rejected'`},
	},
	Failed: {{columns: `job_id AS id, position, 'failed'::job_status AS status, failure, NULL::bigint AS seq, NULL::balance AS balance_after,
		finished_at, xmin AS finished_by FROM failures`}},
}
