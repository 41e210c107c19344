// Package postgrestest puts a pooler before the servers of tests.
package postgrestest

import (
	"regexp"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// repair is a setting that Passbook's own error says is missing.
var repair = regexp.MustCompile(`ALTER ROLE [^;]+`)

// Pooler is a PgBouncer before a server, whose superuser has the settings that Passbook needs there: those
// that its own error names.
func Pooler(t testing.TB, server *local.Postgres, serverConns int) *local.PgBouncer {
	t.Helper()
	bouncer := testenv.PgBouncer(t, local.PgBouncerConfig{Server: server, ServerConns: serverConns})
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: bouncer.URL(), MaxConns: 1, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // its statements have been answered
	if err := pool.Ping(t.Context()); err != nil {
		for _, sql := range repair.FindAllString(err.Error(), -1) {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	testenv.Console(t, bouncer, "RECONNECT")
	testenv.Eventually(t, "the pooler's sessions to have the settings", func() bool { return pool.Ping(t.Context()) == nil })
	return bouncer
}
