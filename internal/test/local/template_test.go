package local_test

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/test/local"
)

// The first call makes the template, the second finds it, and a server that copies it
// has what fill wrote.
func TestTemplate(t *testing.T) {
	t.Parallel()
	key, calls := rand.Text(), 0
	var dir string
	for range 2 {
		var err error
		dir, err = local.Template(t.Context(), key, func(ctx context.Context, server *local.Postgres) error {
			calls++
			return execute(ctx, server.URL(), "CREATE TABLE filled ()")
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	if calls != 1 {
		t.Errorf("fill was called %d times, want once", calls)
	}
	server, err := local.StartPostgres(t.Context(), local.PostgresConfig{Template: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Remove(context.WithoutCancel(t.Context())) })
	if err := execute(t.Context(), server.URL(), "TABLE filled"); err != nil {
		t.Error(err)
	}
}

func TestTemplate_FillFails(t *testing.T) {
	t.Parallel()
	wrong := errors.New("wrong")
	key := rand.Text()
	for range 2 { // nothing is left for the second call to find
		dir, err := local.Template(t.Context(), key, func(context.Context, *local.Postgres) error { return wrong })
		if !errors.Is(err, wrong) {
			t.Errorf("got %s, %v, want %v", dir, err, wrong)
		}
	}
}

func execute(ctx context.Context, url, statement string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has been answered
	_, err = conn.Exec(ctx, statement)
	return err
}
