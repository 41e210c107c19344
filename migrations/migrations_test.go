package migrations_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/testenv"
	"github.com/passbook/passbook/migrations"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

// Processes that migrate at the same time wait for one another.
func TestUpAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	var group errgroup.Group
	for range 4 {
		group.Go(func() error { return migrations.Up(t.Context(), url) })
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
	if version != want || applied != want {
		t.Errorf("version %d after %d migrations, want %d", version, applied, want)
	}
}

// The migration takes the URL that the processes take.
func TestUpPoolURL(t *testing.T) {
	t.Parallel()
	if err := migrations.Up(t.Context(), testenv.Postgres(t)+"&pool_max_conns=4"); err != nil {
		t.Error(err)
	}
}

// Another service keeps its own migrations in the same database, in goose's own table.
func TestUpBesideAnotherService(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `DROP SCHEMA public CASCADE; CREATE SCHEMA public;
		CREATE TABLE goose_db_version (id serial PRIMARY KEY, version_id bigint, is_applied boolean, tstamp timestamp DEFAULT now());
		INSERT INTO goose_db_version (version_id, is_applied) SELECT n, true FROM generate_series(0, 99) n`)
	if err := migrations.Up(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	execute(t, url, `SELECT FROM jobs`)
}

// Somebody who reads for long, a pg_dump say, holds the migration up; nobody else
// has to wait behind it.
func TestUpWaitsForAReader(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	downTo(t, url, 1)
	reader, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), `SELECT FROM jobs`); err != nil {
		t.Fatal(err)
	}
	up := make(chan error, 1)
	go func() { up <- migrations.Up(t.Context(), url) }()
	others := connect(t, url)
	testenv.Eventually(t, "the migration to wait", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'jobs'::regclass AND NOT granted)`
		if err := others.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	if _, err := others.Exec(t.Context(), `SET lock_timeout = '10s'; SELECT FROM jobs`); err != nil {
		t.Errorf("who only reads waits behind the migration: %v", err)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-up; err != nil {
		t.Error(err)
	}
}

// An index is built beside those who hold a snapshot, an export say, for longer
// than a change of a table would wait for them; nobody waits for it meanwhile.
func TestUpWaitsForASnapshot(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	downTo(t, url, 3)
	// What the database bounds, the migration does not heed: an index that is cut off stays INVALID.
	execute(t, url, fmt.Sprintf(`ALTER DATABASE %s SET statement_timeout = '500 ms'`, databaseOf(t, url)))
	reader, err := connect(t, url).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), `SELECT FROM transactions`); err != nil {
		t.Fatal(err)
	}
	up := make(chan error, 1)
	go func() { up <- migrations.Up(t.Context(), url) }()
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
		t.Errorf("who writes waits for the migration: %v", err)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-up; err != nil {
		t.Error(err)
	}
}

// Without its archive, the database has every job where it was before.
func TestDownKeepsArchivedJobs(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), 1, gen_random_uuid(), 'deposit', n, 'k' || n FROM generate_series(1, 6) n;
		UPDATE jobs SET status = 'rejected', failure = 'x', finished_at = now() WHERE amount < 5`)
	conn := connect(t, url)
	all := func() (jobs string) {
		t.Helper()
		const sql = `SELECT string_agg(job::text, ' ' ORDER BY position) FROM jobs job`
		if err := conn.QueryRow(t.Context(), sql).Scan(&jobs); err != nil {
			t.Fatal(err)
		}
		return jobs
	}
	before := all()
	execute(t, url, `INSERT INTO archived_jobs SELECT * FROM jobs WHERE amount < 4; DELETE FROM jobs WHERE amount < 4`)
	const archive = 6
	downTo(t, url, archive-1)
	if after := all(); after != before {
		t.Errorf("jobs are %s\nbefore %s", after, before)
	}
	if _, err := conn.Exec(t.Context(), `DELETE FROM jobs`); err == nil {
		t.Error("jobs may be deleted")
	}
	if err := migrations.Up(t.Context(), url); err != nil {
		t.Error(err)
	}
}

// The rules of jobs, balances and history hold whichever way the schema moves.
func TestRulesHoldBothWays(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	execute(t, url, `
		INSERT INTO users (id, email, password_hash) VALUES (gen_random_uuid(), 'a@example.com', '');
		INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT id, '1234', 'KRW', now(), now() FROM users;
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), id, user_id, 'deposit', 1, 'k' FROM accounts`)
	conn := connect(t, url)
	refuses := func(when string) {
		t.Helper()
		for _, sql := range []string{
			`UPDATE jobs SET status = 'succeeded', finished_at = now()`,
			`UPDATE jobs SET finished_at = now()`,
			`UPDATE jobs SET attempts = -1`,
			`UPDATE accounts SET balance = 1`,
			`INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at) VALUES (1, 2, 'deposit', 1, 1, now())`,
			`INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at) VALUES (1, 1, 'deposit', 2, 1, now())`,
			`INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at) VALUES (1, 0, 'deposit', 1, 1, now())`,
		} {
			if _, err := conn.Exec(t.Context(), sql); err == nil {
				t.Errorf("%s: nothing refuses %s", when, sql)
			}
		}
	}
	refuses("up")
	const forms = 8
	downTo(t, url, forms)
	refuses("down")
	if err := migrations.Up(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	refuses("up again")
	downTo(t, url, forms)
	refuses("down again")
}

// downTo takes the migrations after a version back.
func downTo(t testing.TB, url string, version int64) {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*cfg)
	defer db.Close() //nolint:errcheck // nothing is pending on it
	provider, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("."), goose.WithTableName(postgres.VersionTable))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.DownTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
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
