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
	After     int64  // the position that the page before ended with, 0 for the first page
	Limit     int
}

// List reads a page of an account's jobs in the order in which they were
// accepted; ErrAccountNotFound where the account is not there or another's.
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
	if page.Status == Queued { // a job that is not there has finished
		postgres.ShowAll(ctx)
	}
	if len(jobs) == 0 {
		return nil, r.checkOwned(ctx, page.Account)
	}
	return jobs, nil
}

// checkOwned tells an account without jobs from one that is not the caller's:
// ErrAccountNotFound.
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

// listSQL reads each status from its own stretch of an index, in order, and
// merges the stretches: an index of its own for the unfiltered list would cost
// every accept and every apply an entry. The statuses stand in the text because
// the planner must see which partial index they belong to.
//
// The account is found by its owner and number in this statement, once.
//
// $1 the user, $2 the account's number, $3 the position to go on after, $4 the limit.
func listSQL(statuses []Status, ascending bool) string {
	beyond, order := "<", "DESC"
	if ascending {
		beyond, order = ">", "ASC"
	}
	var stretches []string
	for _, status := range statuses {
		for _, table := range tablesOf(status) {
			stretches = append(stretches, fmt.Sprintf(`(SELECT %s, xmin AS writer FROM %s WHERE account_id = (SELECT id FROM owned) AND status = '%s' AND position %s $3
				ORDER BY position %s LIMIT $4)`, stored, table, status, beyond, order))
		}
	}
	return fmt.Sprintf(`WITH owned AS MATERIALIZED (SELECT id, number, currency FROM accounts WHERE user_id = $1 AND number = $2)
		SELECT %s FROM owned account, (SELECT * FROM (%s) merged ORDER BY position %s LIMIT $4) job
		ORDER BY job.position %[3]s`, columns+shownColumns, strings.Join(stretches, " UNION ALL "), order)
}

// tablesOf are the tables where jobs of a status stand.
func tablesOf(status Status) []string {
	if status == Succeeded || status == Rejected {
		return []string{"jobs", "archived_jobs"}
	}
	return []string{"jobs"}
}
