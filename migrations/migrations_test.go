package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/migrations"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

// Processes that migrate at the same time wait for each other.
func TestUpAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	var group errgroup.Group
	var all atomic.Int64 // the migrations that the processes say they applied
	for range 4 {
		group.Go(func() error {
			names, err := migrations.Up(t.Context(), url)
			all.Add(int64(len(names)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	want, err := migrations.Version()
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	var version, applied int64
	if err := conn.QueryRow(t.Context(), `SELECT max(version_id), count(*) FILTER (WHERE version_id > 0) FROM passbook_schema_version`).Scan(&version, &applied); err != nil {
		t.Fatal(err)
	}
	if version != want || applied != want || all.Load() != want {
		t.Errorf("version %d after %d migrations, %d of them reported; want %d", version, applied, all.Load(), want)
	}
}

// A database whose first migrations were others is refused by name, and stays as it is.
func TestUpRefusesAnOlderDatabase(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `DROP FUNCTION accept_batch; DROP TABLE operator_actions; DELETE FROM passbook_schema_version WHERE version_id > 3`)
	if _, err := migrations.Up(t.Context(), url); err == nil || !strings.Contains(err.Error(), "older than the first release") {
		t.Errorf("got %v, want that the database is older than the first release", err)
	}
	var version int64
	if err := connect(t, url).QueryRow(t.Context(), `SELECT max(version_id) FROM passbook_schema_version`).Scan(&version); err != nil || version != 3 {
		t.Errorf("version %d, %v; want 3", version, err)
	}
}

// Status shows which migrations the database has, in a database that was never migrated too, and
// changes nothing there.
func TestStatus(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	shown := func() (lines []string) {
		t.Helper()
		all, err := migrations.Status(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			state := "applied"
			if m.AppliedAt.IsZero() {
				state = "pending"
			} else if age := time.Since(m.AppliedAt); age < -time.Minute || age > 24*time.Hour {
				t.Errorf("%s was applied %v ago", m.Name, age)
			}
			lines = append(lines, m.Name[:5]+" "+state)
		}
		return lines
	}
	want, err := migrations.Version()
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(); len(got) != int(want) || slices.ContainsFunc(got, func(line string) bool { return strings.HasSuffix(line, "pending") }) {
		t.Errorf("of a migrated database: %q", got)
	}
	execute(t, url, `DELETE FROM passbook_schema_version WHERE version_id = 2; INSERT INTO passbook_schema_version (version_id, is_applied) VALUES (99999, true)`)
	if got := shown(); len(got) != int(want)+1 || got[0] != "00001 applied" || got[1] != "00002 pending" || got[want] != "99999 applied" {
		t.Errorf("of another build's database: %q", got)
	}
	execute(t, url, `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	if got := shown(); len(got) != int(want) || slices.ContainsFunc(got, func(line string) bool { return !strings.HasSuffix(line, "pending") }) {
		t.Errorf("of an empty database: %q", got)
	}
	var tables int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace`).Scan(&tables); err != nil || tables > 0 {
		t.Errorf("%d tables made, %v", tables, err)
	}
}

// The migration takes the URL that the processes take.
func TestUpPoolURL(t *testing.T) {
	t.Parallel()
	if _, err := migrations.Up(t.Context(), testenv.Postgres(t)+"&pool_max_conns=4"); err != nil {
		t.Error(err)
	}
}

// A migration holds its lock in a session, which it has not got behind a pooler: it is refused with what
// to do, also where the pooler lets its parameters pass.
func TestUpThroughAPooler(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	for name, settings := range map[string]map[string]string{
		"Refused": nil,
		"Ignored": {"ignore_startup_parameters": "search_path, intervalstyle, bytea_output, transform_null_equals, default_transaction_isolation," +
			"default_transaction_deferrable, array_nulls, row_security, idle_session_timeout, lock_timeout, statement_timeout, idle_in_transaction_session_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bouncer := testenv.PgBouncer(t, local.PgBouncerConfig{Server: server, ServerConns: 2, Settings: settings})
			if _, err := migrations.Up(t.Context(), bouncer.URL()); !errors.Is(err, postgres.ErrUnsuitable) || !strings.Contains(err.Error(), "DATABASE_URL of `api migrate`") {
				t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
			}
		})
	}
}

// Another service keeps its own migrations in the same database, in goose's own table.
func TestUpBesideAnotherService(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `DROP SCHEMA public CASCADE; CREATE SCHEMA public;
		CREATE TABLE goose_db_version (id serial PRIMARY KEY, version_id bigint, is_applied boolean, tstamp timestamp DEFAULT now());
		INSERT INTO goose_db_version (version_id, is_applied) SELECT n, true FROM generate_series(0, 99) n`)
	if _, err := migrations.Up(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	execute(t, url, `SELECT FROM jobs`)
}

// The migration waits for a long read, of a pg_dump perhaps, and other transactions
// don't wait behind the migration.
func TestUpWaitsForAReader(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	reader, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), `SELECT FROM jobs`); err != nil {
		t.Fatal(err)
	}
	up := startUp(t, url, "-- +goose Up\nALTER TABLE jobs ADD COLUMN next text;")
	others := connect(t, url)
	testenv.Eventually(t, "the migration to wait", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'jobs'::regclass AND NOT granted)`
		if err := others.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	if _, err := others.Exec(t.Context(), `SET lock_timeout = '10s'; SELECT FROM jobs`); err != nil {
		t.Errorf("a read waits behind the migration: %v", err)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-up; err != nil {
		t.Error(err)
	}
}

// The build of an index waits for a snapshot that is held, of an export perhaps, for
// longer than a change of a table would wait; writers don't wait for the build.
func TestUpWaitsForASnapshot(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	// The database's own bound does not count: an index whose build is cut off stays INVALID.
	execute(t, url, fmt.Sprintf(`ALTER DATABASE %s SET statement_timeout = '500 ms'`, databaseOf(t, url)))
	reader, err := connect(t, url).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), `SELECT FROM transactions`); err != nil {
		t.Fatal(err)
	}
	up := startUp(t, url, `-- +goose NO TRANSACTION
-- +goose Up
SET lock_timeout = 0;
CREATE INDEX CONCURRENTLY transactions_next ON transactions (account_id);
RESET lock_timeout;`)
	others := connect(t, url)
	testenv.Eventually(t, "the migration to wait for longer than lock_timeout", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%'
			AND wait_event = 'virtualxid' AND clock_timestamp() - query_start > '1500 ms' AND pid <> pg_backend_pid())`
		if err := others.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	if _, err := others.Exec(t.Context(), `SET lock_timeout = '1s'; BEGIN; LOCK TABLE transactions IN ROW EXCLUSIVE MODE; COMMIT`); err != nil {
		t.Errorf("a writer waits for the migration: %v", err)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-up; err != nil {
		t.Error(err)
	}
}

// next is the number of a migration that comes after all of this build's.
const next = "99999_next.sql"

// startUp applies one more migration in the background.
func startUp(t *testing.T, url, sql string) (done <-chan error) {
	t.Helper()
	one := fstest.MapFS{next: {Data: []byte(sql)}}
	up := make(chan error, 1)
	go func() {
		_, err := migrations.UpFrom(t.Context(), url, one)
		up <- err
	}()
	return up
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func execute(t testing.TB, url, sql string) {
	t.Helper()
	if _, err := connect(t, url).Exec(t.Context(), sql); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", sql, err))
	}
}

func databaseOf(t *testing.T, url string) string {
	t.Helper()
	return pgx.Identifier{connect(t, url).Config().Database}.Sanitize()
}
