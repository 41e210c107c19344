package migrations

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"

	"github.com/passbook/passbook/internal/postgres"
)

// Migration is a migration of this build, or one that the database has from a newer build.
type Migration struct {
	Version   int64
	Name      string    // of its file
	AppliedAt time.Time // zero while it is pending
}

// Status returns the migrations in their order. It only reads, where goose's own Status makes the
// table of versions.
func Status(ctx context.Context, pool *pgxpool.Pool) ([]Migration, error) {
	applied, err := readApplied(ctx, pool)
	if err != nil {
		return nil, fmt.Errorf("read the applied migrations: %w", postgres.Explain(err))
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var all []Migration
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, err
		}
		all = append(all, Migration{Version: version, Name: name, AppliedAt: applied[version]})
		delete(applied, version)
	}
	for version, at := range applied {
		all = append(all, Migration{Version: version, Name: fmt.Sprintf("%05d (of a newer build)", version), AppliedAt: at})
	}
	slices.SortFunc(all, func(x, y Migration) int { return int(x.Version - y.Version) })
	return all, nil
}

// readApplied returns when each version was applied; none in a database that was never migrated.
func readApplied(ctx context.Context, pool *pgxpool.Pool) (map[int64]time.Time, error) {
	// goose begins the table with version 0, and dates rows in the time zone of the session, which is UTC.
	const sql = `SELECT version_id, tstamp FROM ` + postgres.VersionTable + ` WHERE is_applied AND version_id > 0`
	applied := map[int64]time.Time{}
	var version int64
	var at time.Time
	rows, _ := pool.Query(ctx, sql) // ForEachRow returns its error
	_, err := pgx.ForEachRow(rows, []any{&version, &at}, func() error {
		applied[version] = at
		return nil
	})
	const undefinedTable = "42P01"
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == undefinedTable {
		return nil, nil
	}
	return applied, err
}
