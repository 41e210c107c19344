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

// ErrSchema is returned for a database whose schema this build does not know.
var ErrSchema = errors.New("unknown schema")

// VersionTable is where goose keeps what was applied. The name is ours: another service
// that uses goose in the same database has its own versions in goose's own table.
const VersionTable = "passbook_schema_version"

// CheckSchema compares the database's schema version with the one this build
// was written for and answers ErrSchema, with what to do, unless they are equal.
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

// CheckReady answers nil when Postgres takes writes and has at least the schema that
// this build needs: during an upgrade it may be ahead of a running process. ErrUnsuitable
// for a database that only reads, as default_transaction_read_only or a standby has it.
func CheckReady(ctx context.Context, pool *pgxpool.Pool, need int64) error {
	if err := CheckWrites(ctx, pool); err != nil {
		return err
	}
	return CheckReplica(ctx, pool, need)
}

// CheckReplica is CheckReady for a server that is only read from.
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
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "42P01", errors.Is(err, pgx.ErrNoRows): // no such table: never migrated
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	return version, nil
}
