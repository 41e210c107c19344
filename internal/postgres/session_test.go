package postgres_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/migrations"
)

// alterDatabase gives every new session of the database a setting.
func alterDatabase(t *testing.T, url, name, value string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // nothing is pending on it
	sql := fmt.Sprintf(`ALTER DATABASE %s SET %s = %s`, pgx.Identifier{conn.Config().Database}.Sanitize(), name, value)
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// The configuration of a database does not change the settings that the statements rely on.
func TestSessionSetsWhatItNeeds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ given, want string }{
		"client_encoding":                {"'LATIN1'", "UTF8"},
		"timezone":                       {"'Asia/Seoul'", "UTC"},
		"datestyle":                      {"'German'", "ISO, MDY"},
		"intervalstyle":                  {"'sql_standard'", "postgres"},
		"bytea_output":                   {"'escape'", "hex"},
		"standard_conforming_strings":    {"off", "on"},
		"transform_null_equals":          {"on", "off"},
		"default_transaction_isolation":  {"'serializable'", "read committed"},
		"default_transaction_deferrable": {"on", "off"},
		"array_nulls":                    {"off", "on"},
		"row_security":                   {"off", "on"},
		"idle_session_timeout":           {"'5s'", "0"},
		"search_path":                    {"'elsewhere'", "public, pg_temp"},
		"session_replication_role":       {"'replica'", "origin"},
		"synchronous_commit":             {"off", "on"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testenv.Postgres(t)
			alterDatabase(t, url, name, test.given)
			if got := setting(t, open(t, url), name); got != test.want {
				t.Errorf("%s is %q, want %q", name, got, test.want)
			}
		})
	}
}

// A reload of the server's configuration does not change existing sessions: their 202s stay
// durable.
func TestSessionKeepsItsSettings(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool := open(t, server.URL())
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, sql := range []string{
		`ALTER SYSTEM SET session_replication_role = replica`,
		`ALTER SYSTEM SET bytea_output = escape`, `SELECT pg_reload_conf()`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	plain, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close(t.Context()) //nolint:errcheck // nothing is pending on it
	testenv.Eventually(t, "a plain session follows the server", func() bool {
		var output string
		return plain.QueryRow(t.Context(), `SHOW bytea_output`).Scan(&output) == nil && output == "escape"
	})
	for name, want := range map[string]string{"session_replication_role": "origin", "bytea_output": "hex"} {
		var got string
		if err := conn.QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&got); err != nil || got != want {
			t.Errorf("after a reload %s is %q (%v), want %q", name, got, err, want)
		}
	}
	// The test's server has this one on its command line, where no reload reaches it.
	const sourceSQL = `SELECT source FROM pg_settings WHERE name = 'synchronous_commit'`
	var source string
	if err := conn.QueryRow(t.Context(), sourceSQL).Scan(&source); err != nil || source != "session" {
		t.Errorf("synchronous_commit comes from %q (%v), want the session", source, err)
	}
}

// A session refuses a database that no setting makes safe, and says what to do.
func TestSessionRefuses(t *testing.T) {
	t.Parallel()
	t.Run("Encoding", func(t *testing.T) {
		t.Parallel()
		server := testenv.PostgresServer(t)
		for _, encoding := range []string{"SQL_ASCII", "LATIN1"} {
			execute(t, server.URL(), fmt.Sprintf(`CREATE DATABASE "%s" ENCODING '%[1]s' LOCALE 'C' TEMPLATE template0`, encoding))
			wantUnsuitable(t, withPath(t, server.URL(), encoding))
		}
	})
	t.Run("TriggersOff", func(t *testing.T) {
		t.Parallel()
		server := testenv.PostgresServer(t)
		execute(t, server.URL(), `CREATE ROLE serving LOGIN PASSWORD 'serving'`)
		execute(t, server.URL(), `ALTER ROLE serving SET session_replication_role = replica`)
		u, err := url.Parse(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("serving", "serving")
		wantUnsuitable(t, u.String())
	})
}

func wantUnsuitable(t *testing.T, url string) {
	t.Helper()
	if err := open(t, url).Ping(t.Context()); !errors.Is(err, postgres.ErrUnsuitable) {
		t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
	}
}

func withPath(t *testing.T, address, database string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database
	return u.String()
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // nothing is pending on it
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// A database that takes no writes is not ready, but it is as a replica.
func TestReadyTakesWrites(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	alterDatabase(t, url, "default_transaction_read_only", "on")
	pool := open(t, url)
	if err := postgres.CheckReady(t.Context(), pool, 1); !errors.Is(err, postgres.ErrUnsuitable) {
		t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
	}
	if err := postgres.CheckReplica(t.Context(), pool, 1); err != nil {
		t.Error(err)
	}
}

// A server that takes no writes is logged once, however many connections find it.
func TestReadOnlyIsLoggedOnce(t *testing.T) {
	t.Parallel()
	const writes = 5
	url := testenv.Postgres(t)
	alterDatabase(t, url, "default_transaction_read_only", "on")
	var log bytes.Buffer
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 1, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for range writes {
		if _, err := pool.Exec(t.Context(), `CREATE TABLE written (id int)`); !postgres.IsDown(err) {
			t.Fatalf("a write where none is taken: %v", err)
		}
	}
	if n := strings.Count(log.String(), "takes no writes"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, log.String())
	}
}

// A process logs the settings that a 202 relies on and that no session can set.
func TestServingWarnsOfUnsafeSettings(t *testing.T) {
	t.Parallel()
	schema, err := migrations.Version()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		settings map[string]string
		want     int
	}{
		"Safe":          {map[string]string{"fsync": "on", "full_page_writes": "on"}, 0},
		"FsyncOff":      {map[string]string{"fsync": "off", "full_page_writes": "on"}, 1},
		"PageWritesOff": {map[string]string{"fsync": "on", "full_page_writes": "off"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testenv.PostgresServerWith(t, test.settings)
			var log bytes.Buffer
			pool, err := postgres.OpenServing(t.Context(), postgres.Config{URL: server.URL()}, schema, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			pool.Close()
			if n := strings.Count(log.String(), "loses accepted jobs"); n != test.want {
				t.Errorf("%d warnings, want %d:\n%s", n, test.want, log.String())
			}
		})
	}
}

// A migration that can't write returns an error that says what to do.
func TestMigrateRefusesReadOnly(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	alterDatabase(t, url, "default_transaction_read_only", "on")
	if _, err := migrations.Up(t.Context(), url); !errors.Is(err, postgres.ErrUnsuitable) ||
		!strings.Contains(err.Error(), "RESET default_transaction_read_only") {
		t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
	}
}

// Another service's migrations in the same database don't count.
func TestSchemaOfAnotherService(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	pool := open(t, url)
	execute(t, url, `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	execute(t, url, `CREATE TABLE goose_db_version (id serial, version_id bigint, is_applied boolean);
		INSERT INTO goose_db_version (version_id, is_applied) SELECT n, true FROM generate_series(0, 99) n`)
	if err := postgres.CheckSchema(t.Context(), pool, 1); !errors.Is(err, postgres.ErrSchema) {
		t.Errorf("%v, want %v", err, postgres.ErrSchema)
	}
}
