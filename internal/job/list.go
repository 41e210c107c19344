package job

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Page asks for a part of an account's jobs.
type Page struct {
	AccountID int64
	Status    Status // all where empty
	Ascending bool   // by position; else the newest first
	After     int64  // the position that the page before ended with, 0 for the first page
	Limit     int
}

// List reads a page of an account's jobs in the order in which they were
// accepted. Whose account it is, the caller has checked.
func (r *Reader) List(ctx context.Context, page Page) ([]Job, error) {
	after := page.After
	if after == 0 && !page.Ascending {
		after = math.MaxInt64
	}
	statuses := Statuses
	if page.Status != "" {
		statuses = []Status{page.Status}
	}
	rows, _ := r.pool.Query(ctx, listSQL(statuses, page.Ascending), page.AccountID, after, page.Limit) // CollectRows returns its error
	jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Job])
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return jobs, nil
}

// listSQL reads each status from its own stretch of an index, in order, and
// merges the stretches: an index of its own for the unfiltered list would cost
// every accept and every apply an entry. The statuses stand in the text because
// the planner must see which partial index they belong to.
//
// $1 the account's id, $2 the position to go on after, $3 the limit.
func listSQL(statuses []Status, ascending bool) string {
	beyond, order := "<", "DESC"
	if ascending {
		beyond, order = ">", "ASC"
	}
	var stretches []string
	for _, status := range statuses {
		for _, table := range tablesOf(status) {
			stretches = append(stretches, fmt.Sprintf(`(SELECT * FROM %s WHERE account_id = $1 AND status = '%s' AND position %s $2
				ORDER BY position %s LIMIT $3)`, table, status, beyond, order))
		}
	}
	return fmt.Sprintf(`SELECT %s FROM accounts account, (SELECT * FROM (%s) merged ORDER BY position %s LIMIT $3) job
		WHERE account.id = $1
		ORDER BY job.position %[3]s`, columns, strings.Join(stretches, " UNION ALL "), order)
}

// tablesOf are the tables where jobs of a status stand.
func tablesOf(status Status) []string {
	if status == Succeeded || status == Rejected {
		return []string{"jobs", "archived_jobs"}
	}
	return []string{"jobs"}
}
