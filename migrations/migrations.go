// Package migrations holds the schema, one goose migration a file, and applies
// them. Its promise: the schema moves forwards under an advisory lock, one
// process at a time, and whoever is at work on it is held up for a moment at most.
//
// Expand before contract: while the schema moves, processes of the build before
// are at work on it, and go on until they are replaced. So a migration only adds
// what they can do without knowing (a table, an index, a column that may be
// null or has a default), and what nobody uses any more goes in a later release
// than the one that stopped using it. One that has been released is never
// edited. The tests of a rolling upgrade hold both.
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

// A change of a table waits for all who are at it, a pg_dump perhaps, and everybody
// else waits behind it.
const (
	// lockTimeout, in milliseconds, is when it gives way. An autovacuum gives way to
	// it, but only after deadlock_timeout, a second.
	lockTimeout = "1200"
	lockPause   = 2 * time.Second // until it tries again
	lockTries   = 150             // five minutes of it
)

// Up applies every migration that the database does not have yet. Processes
// that start it together wait for one another.
func Up(ctx context.Context, databaseURL string) error {
	return up(ctx, databaseURL, files)
}

func up(ctx context.Context, databaseURL string, files fs.FS) error {
	cfg, err := postgres.ParseURL(databaseURL)
	if err != nil {
		return fmt.Errorf("migrate: read the database URL: %w", err)
	}
	postgres.SetSession(cfg.ConnConfig, "passbook-migrate")
	cfg.ConnConfig.RuntimeParams["lock_timeout"] = lockTimeout
	for _, unbounded := range []string{"statement_timeout", "idle_in_transaction_session_timeout"} {
		cfg.ConnConfig.RuntimeParams[unbounded] = "0" // an index takes as long as it takes; one that is cut off stays INVALID
	}
	db := stdlib.OpenDB(*cfg.ConnConfig, stdlib.OptionAfterConnect(secureWriter))
	defer db.Close()                                                           //nolint:errcheck // nothing is pending on it
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // asks each second, for five minutes
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker), goose.WithTableName(postgres.VersionTable))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if err := patiently(ctx, provider); err != nil {
		return fmt.Errorf("migrate: %w", postgres.Explain(err))
	}
	return nil
}

// secureWriter makes a session safe, and refuses one in which no migration can write.
func secureWriter(ctx context.Context, conn *pgx.Conn) error {
	if err := postgres.SecureSession(ctx, conn); err != nil {
		return err
	}
	return postgres.CheckWrites(ctx, conn)
}

func patiently(ctx context.Context, provider *goose.Provider) error {
	for try := 1; ; try++ {
		_, err := provider.Up(ctx)
		if !isLockTimeout(err) || try == lockTries {
			return err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return err
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

// Version is the schema that this build was written for: the number of its
// newest migration.
func Version() (int64, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, fmt.Errorf("list migrations: %w", err)
	}
	return goose.NumericComponent(names[len(names)-1])
}
