package migrations_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

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
	if err := conn.QueryRow(t.Context(), `SELECT max(version_id), count(*) FILTER (WHERE version_id > 0) FROM goose_db_version`).Scan(&version, &applied); err != nil {
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
