package job

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
)

// acceptNeeds are the rights that an accept needs. The trigger that puts the job into the queue runs
// with the rights of its owner.
var acceptNeeds = []postgres.Need{
	{Privilege: "SELECT", Table: "accounts"},
	{Privilege: "SELECT", Table: "jobs"},
	{Privilege: "SELECT", Table: "queue"},
	{Privilege: "INSERT", Table: "jobs"},
	{Privilege: "INSERT", Table: "queue", By: "enter_queue"},
}

// tryAcceptSQL accepts nothing, since no account has this owner. It fails if the server can't load the
// language of its functions.
const tryAcceptSQL = `SELECT FROM accept_batch('00000000-0000-0000-0000-000000000000', '', '{}', '{}', '{}', '{}', '{}', '{}', 0, 0)`

// CheckAccept returns nil if Postgres would accept a job through pool. It writes nothing.
func CheckAccept(ctx context.Context, pool *pgxpool.Pool) error {
	for _, function := range []string{"accept_jobs", "accept_batch"} {
		if err := postgres.CheckExecute(ctx, pool, function); err != nil {
			return err
		}
	}
	if err := postgres.CheckNeeds(ctx, pool, acceptNeeds); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, tryAcceptSQL); err != nil {
		return fmt.Errorf("try to accept a job for an account that does not exist: %w", err)
	}
	return nil
}
