package job

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
)

// acceptNeeds are the rights with which a job is accepted. The trigger that puts it into the queue runs
// with its owner's.
var acceptNeeds = []postgres.Need{
	{Privilege: "SELECT", Table: "accounts"},
	{Privilege: "SELECT", Table: "jobs"},
	{Privilege: "SELECT", Table: "queue"},
	{Privilege: "INSERT", Table: "jobs"},
	{Privilege: "INSERT", Table: "queue", By: "enter_queue"},
}

// tryAcceptSQL accepts nothing: no account has this owner. It shows that the server can load the
// language of its functions.
const tryAcceptSQL = `SELECT FROM accept_batch('00000000-0000-0000-0000-000000000000', '', '{}', '{}', '{}', '{}', '{}', '{}', 0, 0)`

// CheckAccept returns nil where Postgres would accept a job through pool. It writes nothing.
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
