package job

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
)

// Owned names a job as its owner does.
type Owned struct {
	UserID uuid.UUID
	ID     uuid.UUID
}

// OwnedJob is a job and its owner.
type OwnedJob struct {
	UserID uuid.UUID
	Job
}

// finishedSQL reads the finished ones of the jobs, and confirms them. If it finds one, its own
// commit waits until it is flushed, on a synchronous standby too. The log is flushed in order, so
// every end that its snapshot shows is then durable. With a gate, the confirmation would be a second
// statement. If it finds none, it writes nothing.
//
// It looks up each job by itself: without LIMIT the planner may join the tables.
//
// $1 users, $2 ids, as arrays.
const finishedSQL = `SELECT asked.user_id, ` + columns + `, (` + postgres.ConfirmSQL + `) IS NOT NULL
	FROM unnest($1::uuid[], $2::uuid[]) AS asked (user_id, id)
	CROSS JOIN LATERAL (
		SELECT ` + stored + ` FROM job_states WHERE id = asked.id AND user_id = asked.user_id AND status <> 'queued' UNION ALL
		SELECT ` + stored + ` FROM archived_jobs WHERE id = asked.id AND user_id = asked.user_id LIMIT 1
	) job
	JOIN accounts account ON account.id = job.account_id AND account.user_id IS NOT DISTINCT FROM job.user_id`

// Finished returns the finished ones among the jobs. It leaves out a job that is not the named
// user's. When it returns, the returned jobs are durable. A job that has moved to the archive is
// finished; one snapshot shows a job in jobs or in the archive.
func (r *Reader) Finished(ctx context.Context, jobs []Owned) ([]OwnedJob, error) {
	users, ids := make([][16]byte, len(jobs)), make([][16]byte, len(jobs)) // see acceptedRow
	for i, job := range jobs {
		users[i], ids[i] = job.UserID, job.ID
	}
	type confirmed struct {
		OwnedJob
		Confirmed bool
	}
	rows, _ := r.pool.Query(ctx, finishedSQL, users, ids) // CollectRows returns its error
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (OwnedJob, error) {
		read, err := pgx.RowToStructByPos[confirmed](row)
		return read.OwnedJob, err
	})
	if err != nil {
		return nil, fmt.Errorf("read finished jobs: %w", err)
	}
	return found, nil
}
