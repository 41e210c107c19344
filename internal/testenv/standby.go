package testenv

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// AwayStandby has every commit on a server of the test's own wait for a standby that never
// answers, but for those with synchronous_commit off: they are visible, and nothing that
// waits until they are durable goes on before back.
func AwayStandby(t testing.TB, serverURL string) (back func()) {
	t.Helper()
	set := func(names string) {
		t.Helper()
		ctx := context.WithoutCancel(t.Context())
		conn, err := pgx.Connect(ctx, serverURL)
		if err != nil {
			t.Fatalf("testenv: %v", err)
		}
		defer conn.Close(ctx) //nolint:errcheck // its statements have been answered
		for _, sql := range []string{
			`ALTER SYSTEM SET synchronous_standby_names = ` + names,
			`SELECT pg_reload_conf()`,
			`CHECKPOINT`, // the checkpointer reads the new setting first, and tells all others
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Fatalf("testenv: %s: %v", sql, err)
			}
		}
	}
	set(`'away'`)
	return func() {
		t.Helper()
		set(`''`)
	}
}
