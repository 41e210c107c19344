package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// executeSQL reads whether the role may execute a function. It may not if the function is not there.
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

// Need is a right that a process works with: Privilege on Table, in some column at least. By is the
// function that runs with its owner's rights and uses the right; empty for the role of the connections.
type Need struct{ Privilege, Table, By string }

// missingSQL finds the rights that are missing.
//
// $1 the privileges, $2 the tables, $3 the functions, as arrays. One row for each right that is
// missing: the role that lacks it, the privilege and the table.
const missingSQL = `
	SELECT holder, privilege, name
	FROM unnest($1::text[], $2::text[], $3::text[]) need (privilege, name, by_function),
		LATERAL (SELECT CASE
			WHEN by_function = '' THEN current_user
			ELSE (SELECT CASE WHEN prosecdef THEN pg_get_userbyid(proowner) ELSE current_user END FROM pg_proc WHERE oid = to_regproc(by_function))
		END AS holder) held
	WHERE holder IS NULL OR NOT CASE WHEN privilege = 'DELETE' THEN has_table_privilege(holder, name, privilege)
		ELSE has_any_column_privilege(holder, name, privilege) END`

// CheckNeeds returns ErrUnsuitable, with what to do, where a right is missing. It writes nothing.
func CheckNeeds(ctx context.Context, pool *pgxpool.Pool, needs []Need) error {
	var privileges, tables, functions []string
	for _, need := range needs {
		privileges, tables, functions = append(privileges, need.Privilege), append(tables, need.Table), append(functions, need.By)
	}
	rows, _ := pool.Query(ctx, missingSQL, privileges, tables, functions) // CollectRows returns its error
	missing, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var role *string
		var privilege, table string
		if err := row.Scan(&role, &privilege, &table); err != nil {
			return "", err
		}
		if role == nil {
			return fmt.Sprintf("the function that needs %s on %s is missing", privilege, table), nil
		}
		return fmt.Sprintf("role %s has no right %s on %s", *role, privilege, table), nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("check the rights of the role: %w", err)
	case len(missing) > 0:
		return fmt.Errorf("%w: %s: run deploy/postgres/roles.sql, or grant it", ErrUnsuitable, strings.Join(missing, "; "))
	}
	return nil
}

// AwaitExecute is CheckExecute for a process that starts; see Await.
func AwaitExecute(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, function string) error {
	return Await(ctx, pool, log, func(ctx context.Context) error { return CheckExecute(ctx, pool, function) })
}
