package postgres_test

import (
	"log/slog"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A Postgres that goes away while a process starts does not end the process.
func TestAwaitInstallation(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL(), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	want, err := postgres.Installation(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if id, err := postgres.Installation(t.Context(), pool); err == nil {
		t.Fatalf("a Postgres that is down answers %v", id)
	}
	type answer struct {
		id  uuid.UUID
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		id, err := postgres.AwaitInstallation(t.Context(), pool, slog.New(slog.DiscardHandler))
		answered <- answer{id, err}
	}()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-answered; a.err != nil || a.id != want {
		t.Errorf("%v, %v, want %v", a.id, a.err, want)
	}
}
