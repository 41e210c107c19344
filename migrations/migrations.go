// Package migrations holds the schema, one goose migration a file, and applies
// them. Its promise: one process at a time migrates, under an advisory lock, and
// processes that use the schema meanwhile wait for a moment at most.
//
// Expand before contract: while the schema changes, processes of the build before
// use it, and go on until they are replaced. So a migration only adds what these
// processes need not know (a table, an index, a column that may be null or has a
// default). A later release removes what the build before it stopped using. A
// migration that was released is never edited. The tests of a rolling upgrade
// check both.
package migrations

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/passbook/passbook/internal/postgres"
)

// The names of migrations begin with their number, so that schema.sql is none of them.
//
//go:embed 0*.sql
var files embed.FS

// A change of a table waits for every transaction that uses the table, a pg_dump
// perhaps, and later transactions wait behind the change.
const (
	// lockTimeout is for how many milliseconds a change waits for its lock, before it
	// lets the others pass. It is longer than deadlock_timeout, a second, after which
	// an autovacuum gives its lock up.
	lockTimeout = "1200"
	lockPause   = 2 * time.Second // between two attempts
	lockTries   = 150             // attempts, over five minutes
)

// Up applies every migration that the database does not have yet, and returns the names of those
// that it applied, before an error too. When several processes call it, each waits for the one
// before.
func Up(ctx context.Context, databaseURL string) (applied []string, err error) {
	return up(ctx, databaseURL, files)
}

func up(ctx context.Context, databaseURL string, files fs.FS) (applied []string, err error) {
	cfg, err := postgres.ParseURL(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("migrate: read the database URL: %w", err)
	}
	postgres.SetSession(cfg.ConnConfig, "passbook-migrate")
	cfg.ConnConfig.RuntimeParams["lock_timeout"] = lockTimeout
	for _, unbounded := range []string{"statement_timeout", "idle_in_transaction_session_timeout"} {
		cfg.ConnConfig.RuntimeParams[unbounded] = "0" // an index whose build is cut off stays INVALID
	}
	db := stdlib.OpenDB(*cfg.ConnConfig, stdlib.OptionAfterConnect(secureWriter))
	defer db.Close()                                                           //nolint:errcheck // nothing is pending on it
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // tries each second, for five minutes
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker), goose.WithTableName(postgres.VersionTable))
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	if applied, err = upWithRetries(ctx, provider); err != nil {
		return applied, fmt.Errorf("migrate: %w", postgres.ExplainDirect(err, "a migration", directURL))
	}
	return applied, nil
}

// directURL is what to do about a pooler, as a migration's lock and settings belong to a session.
const directURL = "name the server itself in the DATABASE_URL of `api migrate`"

// secureWriter makes a session safe, and returns an error for one in which no migration can write.
func secureWriter(ctx context.Context, conn *pgx.Conn) error {
	if err := postgres.SecureSession(ctx, conn); err != nil {
		return err
	}
	if err := postgres.CheckDirect(conn, "a migration", directURL); err != nil {
		return err // the lock belongs to a session, and so do the settings
	}
	return postgres.CheckWrites(ctx, conn)
}

// upWithRetries applies the migrations, and tries again where one does not get its lock.
func upWithRetries(ctx context.Context, provider *goose.Provider) (applied []string, err error) {
	for try := 1; ; try++ {
		results, err := provider.Up(ctx)
		if partial, ok := errors.AsType[*goose.PartialError](err); ok {
			results = partial.Applied
		}
		for _, result := range results {
			applied = append(applied, result.Source.Path)
		}
		if !isLockTimeout(err) || try == lockTries {
			return applied, err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return applied, err
		}
	}
}

func isLockTimeout(err error) bool {
	const lockNotAvailable = "55P03"
	refused, ok := errors.AsType[*pgconn.PgError](err)
	return ok && refused.Code == lockNotAvailable
}

// Fingerprint differs wherever a migration does.
func Fingerprint() (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		_, _ = fmt.Fprintf(sum, "%s %d %s", path, len(text), text) // a hash never fails
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

// Version returns the version of the schema that this build needs: the number of
// its newest migration.
func Version() (int64, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, fmt.Errorf("list migrations: %w", err)
	}
	return goose.NumericComponent(names[len(names)-1])
}
