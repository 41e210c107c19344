package testenv

import (
	"context"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/test/local"
)

// PgBouncer is a PgBouncer of the test's own before a server, stopped when the test ends.
func PgBouncer(t testing.TB, cfg local.PgBouncerConfig) *local.PgBouncer {
	t.Helper()
	bouncer, err := local.StartPgBouncer(t.Context(), cfg)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	removeAfter(t, bouncer.Remove)
	return bouncer
}

// Meddle is another client of a pooler, which makes a shared session's commits wait for no flush. With
// one connection to the server, all other clients use that session.
func Meddle(t testing.TB, bouncer *local.PgBouncer) {
	t.Helper()
	execute(t, bouncer.URL(), `SET synchronous_commit = off`)
}

// Console gives a PgBouncer a command of its console.
func Console(t testing.TB, bouncer *local.PgBouncer, command string) {
	t.Helper()
	execute(t, bouncer.Console(), command)
}

func execute(t testing.TB, databaseURL, command string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the command has been answered
	if _, err := conn.Exec(ctx, command); err != nil {
		t.Fatalf("testenv: %s: %v", command, err)
	}
}

// As is a database URL for another user.
func As(t testing.TB, databaseURL, user, password string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}
