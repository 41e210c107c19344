package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrSchema is returned for a database with another schema than this build needs.
var ErrSchema = errors.New("unknown schema")

// VersionTable is where goose records the applied migrations. It is not goose's default table,
// which another service in the same database may use.
const VersionTable = "passbook_schema_version"

// CheckSchema returns ErrSchema, with what to do, unless the database has exactly the schema
// version that this build was written for.
func CheckSchema(ctx context.Context, pool *pgxpool.Pool, want int64) error {
	have, err := schemaVersion(ctx, pool)
	switch {
	case err != nil:
		return err
	case have < want:
		return fmt.Errorf("%w: the database is at version %d, this build needs %d: run `api migrate`", ErrSchema, have, want)
	case have > want:
		return fmt.Errorf("%w: the database is at version %d, this build knows %d: run a newer build", ErrSchema, have, want)
	}
	return nil
}

// AwaitSchema is CheckSchema for a process that starts; see Await.
func AwaitSchema(ctx context.Context, pool *pgxpool.Pool, want int64, log *slog.Logger) error {
	return Await(ctx, pool, log, func(ctx context.Context) error { return CheckSchema(ctx, pool, want) })
}

// CheckReady returns nil where Postgres takes writes and has at least the schema version that
// this build needs: during an upgrade the database may be ahead of a running process.
// ErrUnsuitable for a standby, or where default_transaction_read_only is on.
func CheckReady(ctx context.Context, pool *pgxpool.Pool, need int64) error {
	if err := CheckWrites(ctx, pool); err != nil {
		return err
	}
	return CheckReplica(ctx, pool, need)
}

// CheckReplica is CheckReady for a replica.
func CheckReplica(ctx context.Context, pool *pgxpool.Pool, need int64) error {
	have, err := schemaVersion(ctx, pool)
	if err != nil {
		return err
	}
	if have < need {
		return fmt.Errorf("%w: version %d, need %d", ErrSchema, have, need)
	}
	return nil
}

func schemaVersion(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	const sql = `SELECT coalesce(max(version_id), 0) FROM ` + VersionTable + ` WHERE is_applied`
	var version int64
	err := pool.QueryRow(ctx, sql).Scan(&version)
	pg, refused := errors.AsType[*pgconn.PgError](err)
	switch {
	case refused && pg.Code == "42P01", errors.Is(err, pgx.ErrNoRows): // no such table: never migrated
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	return version, nil
}
