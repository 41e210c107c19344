package testenv

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/migrations"
)

const (
	poolConns    = 16
	templateWait = 2 * time.Minute // to make the data that every server copies, once a machine
)

// shared is the process's one Postgres, which starts when a test first asks.
var shared sharedPostgres

type sharedPostgres struct {
	mu     sync.Mutex // guards what follows, and lets the first test start it alone
	server *local.Postgres
	failed error // of the one attempt to start it
	made   int   // databases so far, for their names
}

// Postgres is the URL of a database of the test's own, with the whole schema. It is
// dropped when the test ends.
func Postgres(t testing.TB) string {
	t.Helper()
	admin, name, err := shared.newDatabase(t.Context())
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := afterTest(t)
		defer cancel()
		if err := execute(ctx, admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("testenv: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// Pool is a pool on a database of the test's own, closed when the test ends.
func Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(Postgres(t))
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	cfg.MaxConns = poolConns
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// PostgresServer is a server of the test's own, which the test may crash and restart. Its
// database has the whole schema.
func PostgresServer(t testing.TB) *local.Postgres {
	t.Helper()
	return PostgresServerWith(t, nil)
}

// PostgresServerWith is the same with settings of its own. An empty setting is left to the
// server's files, where ALTER SYSTEM changes it.
func PostgresServerWith(t testing.TB, settings map[string]string) *local.Postgres {
	t.Helper()
	return startPostgres(t, local.PostgresConfig{Settings: settings}, withSchema)
}

// PostgresServerOn is the same on a host of the test's network.
func PostgresServerOn(t testing.TB, host *local.Host) *local.Postgres {
	t.Helper()
	return startPostgres(t, local.PostgresConfig{Host: host}, withSchema)
}

// EmptyPostgresServer is the same without any schema.
func EmptyPostgresServer(t testing.TB) *local.Postgres {
	t.Helper()
	return startPostgres(t, local.PostgresConfig{}, withoutSchema)
}

func startPostgres(t testing.TB, cfg local.PostgresConfig, template func() (string, error)) *local.Postgres {
	t.Helper()
	var err error
	if cfg.Template, err = template(); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	server, err := local.StartPostgres(t.Context(), cfg)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	removeAfter(t, server.Remove)
	return server
}

// PostgresStandby is a standby of the test's own server. Every commit of that server waits
// for it.
func PostgresStandby(t testing.TB, primary *local.Postgres) *local.Postgres {
	t.Helper()
	return PostgresStandbyOn(t, nil, primary)
}

// PostgresStandbyOn is the same on a host of the test's network.
func PostgresStandbyOn(t testing.TB, host *local.Host, primary *local.Postgres) *local.Postgres {
	t.Helper()
	standby, err := local.StartStandby(t.Context(), primary, local.PostgresConfig{Host: host})
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	removeAfter(t, standby.Remove)
	return standby
}

func removeAfter(t testing.TB, remove func(context.Context) error) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := afterTest(t)
		defer cancel()
		if err := remove(ctx); err != nil {
			t.Errorf("testenv: %v", err)
		}
	})
}

// newDatabase copies the shared server's own database. It returns the copy's name, and the URL of
// template1, for statements about databases.
func (s *sharedPostgres) newDatabase(ctx context.Context) (admin, name string, err error) {
	s.mu.Lock()
	if s.server == nil && s.failed == nil {
		s.server, s.failed = startShared(ctx)
	}
	if s.failed != nil {
		defer s.mu.Unlock()
		return "", "", s.failed
	}
	s.made++
	admin, name = withDatabase(s.server.URL(), "template1"), fmt.Sprintf("test_%d", s.made)
	s.mu.Unlock()
	// Through template1, so that the server's own database has no connections, which a copy requires. Without
	// fsync, file_copy is the cheaper strategy.
	return admin, name, execute(ctx, admin, "CREATE DATABASE "+name+" TEMPLATE postgres STRATEGY file_copy")
}

// startShared starts the server whose databases the tests share.
func startShared(ctx context.Context) (*local.Postgres, error) {
	data, err := withSchema()
	if err != nil {
		return nil, err
	}
	return local.StartPostgres(ctx, local.PostgresConfig{Template: data})
}

// withSchema is the template of the servers that have the whole schema.
var withSchema = sync.OnceValues(func() (string, error) {
	schema, err := migrations.Fingerprint()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), templateWait)
	defer cancel()
	return local.Template(ctx, "schema "+schema, func(ctx context.Context, server *local.Postgres) error {
		_, err := migrations.Up(ctx, server.URL())
		return err
	})
})

// withoutSchema is the template of the servers without any schema.
var withoutSchema = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), templateWait)
	defer cancel()
	return local.Template(ctx, "", func(context.Context, *local.Postgres) error { return nil })
})

func (s *sharedPostgres) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	return s.server.Remove(ctx)
}

// execute runs one statement on a connection of its own: CREATE and DROP
// DATABASE take no parameters and no transaction.
func execute(ctx context.Context, databaseURL, statement string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has been answered
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

func withDatabase(databaseURL, name string) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		panic(err) // a URL of package local
	}
	u.Path = "/" + name
	return u.String()
}
