package testenv

import (
	"context"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"
)

// EitherURL names two servers, and finds the one that takes writes.
func EitherURL(t testing.TB, first, second string) string {
	t.Helper()
	u, err := url.Parse(first)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	other, err := url.Parse(second)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	u.Host += "," + other.Host
	u.RawQuery += "&target_session_attrs=read-write"
	return u.String()
}

// AwayStandby has every commit on a server of the test's own wait for a standby that never
// answers, until back. Commits with synchronous_commit off do not wait: they are visible,
// but not confirmed before back.
func AwayStandby(t testing.TB, serverURL string) (back func()) {
	t.Helper()
	setStandbys(t, serverURL, `'away'`, true)
	return func() {
		t.Helper()
		setStandbys(t, serverURL, `''`, false)
	}
}

// setStandbys returns when commits follow the setting, which reaches the server through two
// other processes.
func setStandbys(t testing.TB, serverURL, names string, wait bool) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	var conns [2]*pgx.Conn
	for i := range conns {
		conn, err := pgx.Connect(ctx, serverURL)
		if err != nil {
			t.Fatalf("testenv: %v", err)
		}
		defer conn.Close(ctx) //nolint:errcheck // its statements have been answered
		conns[i] = conn
	}
	for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = ` + names, `SELECT pg_reload_conf()`} {
		if _, err := conns[0].Exec(ctx, sql); err != nil {
			t.Fatalf("testenv: %s: %v", sql, err)
		}
	}
	Eventually(t, "commits to follow synchronous_standby_names", func() bool { return commitWaits(ctx, t, conns) == wait })
}

// commitWaits returns whether a commit of the first connection waits for a standby. It
// ends the wait.
func commitWaits(ctx context.Context, t testing.TB, conns [2]*pgx.Conn) (waits bool) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := conns[0].Exec(ctx, `SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '', '')`)
		ended <- err
	}()
	pid := conns[0].PgConn().PID()
	for !waits && len(ended) == 0 {
		const sql = `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'`
		tag, err := conns[1].Exec(ctx, sql, pid)
		if err != nil {
			t.Fatalf("testenv: %v", err)
		}
		waits = tag.RowsAffected() > 0
	}
	if err := <-ended; err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return waits
}
