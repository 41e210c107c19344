package postgres

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// executeSQL finds a function that the role may not execute, or that is not there.
//
// $1 the function's name. One row: the role, and whether it may execute the function.
const executeSQL = `SELECT current_user, coalesce(has_function_privilege(to_regproc($1), 'EXECUTE'), false)`

// CheckExecute returns ErrUnsuitable, with what to do, unless the role of the connections may
// execute the function.
func CheckExecute(ctx context.Context, pool *pgxpool.Pool, function string) error {
	var role string
	var allowed bool
	if err := pool.QueryRow(ctx, executeSQL, function).Scan(&role, &allowed); err != nil {
		return fmt.Errorf("check the right to execute %s: %w", function, err)
	}
	if !allowed {
		return fmt.Errorf("%w: role %s has no right EXECUTE on function %s: run deploy/postgres/roles.sql after `api migrate`, "+
			"or GRANT EXECUTE ON FUNCTION %[3]s TO %s", ErrUnsuitable, role, function, pgx.Identifier{role}.Sanitize())
	}
	return nil
}

// AwaitExecute is CheckExecute for a process that starts; see Await.
func AwaitExecute(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, function string) error {
	return Await(ctx, pool, log, func(ctx context.Context) error { return CheckExecute(ctx, pool, function) })
}
