package testenv

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/migrations"
)

const (
	poolConns    = 16
	adminConns   = 4
	templateWait = 2 * time.Minute // to make the data that every server copies, once a machine
)

// shared is the process's one Postgres, which starts when a test first asks.
var shared sharedPostgres

type sharedPostgres struct {
	mu     sync.Mutex // guards what follows, and lets the first test start it alone
	server *local.Postgres
	admin  *pgxpool.Pool // on template1, for statements about databases
	failed error         // of the one attempt to start them
	made   int           // databases so far, for their names
}

// Postgres is the URL of a database of the test's own, with the whole schema. It is
// dropped when the test ends.
func Postgres(t testing.TB) string {
	t.Helper()
	name, err := shared.newDatabase(t.Context())
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := afterTest(t)
		defer cancel()
		if _, err := shared.admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("testenv: drop %s: %v", name, err)
		}
	})
	return withDatabase(shared.server.URL(), name)
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

// newDatabase copies the shared server's own database, and returns the copy's name.
func (s *sharedPostgres) newDatabase(ctx context.Context) (name string, err error) {
	s.mu.Lock()
	if s.server == nil && s.failed == nil {
		s.failed = s.start(ctx)
	}
	s.made++
	name, err = fmt.Sprintf("test_%d", s.made), s.failed
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	// Without fsync, file_copy is the cheaper strategy.
	if _, err := s.admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE postgres STRATEGY file_copy"); err != nil {
		return "", fmt.Errorf("create %s: %w", name, err)
	}
	return name, nil
}

// start starts the server whose databases the tests share.
func (s *sharedPostgres) start(ctx context.Context) error {
	data, err := withSchema()
	if err != nil {
		return err
	}
	server, err := local.StartPostgres(ctx, local.PostgresConfig{Template: data})
	if err != nil {
		return err
	}
	// On template1, so that the server's own database has no connections, which a copy requires.
	admin := fmt.Sprint(withDatabase(server.URL(), "template1"), "&pool_max_conns=", adminConns)
	if s.admin, err = pgxpool.New(ctx, admin); err != nil {
		return errors.Join(err, server.Remove(ctx))
	}
	s.server = server
	return nil
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
	defer s.admin.Close() // it waits for connections in use, which end with the server
	return s.server.Remove(ctx)
}

func withDatabase(databaseURL, name string) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		panic(err) // a URL of package local
	}
	u.Path = "/" + name
	return u.String()
}
