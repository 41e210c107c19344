package local_test

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// mustFollow starts a primary and its standby, and removes them after the test.
func mustFollow(t *testing.T) (primary, standby *local.Postgres) {
	t.Helper()
	dir := filepath.Join(dataDir(t), "it's kept") // a path that needs quoting
	data, err := emptyData()
	if err != nil {
		t.Fatal(err)
	}
	primary, err = local.StartPostgres(t.Context(), local.PostgresConfig{Template: data})
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, primary)
	standby, err = local.StartStandby(t.Context(), primary, local.PostgresConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, standby)
	return primary, standby
}

func removeAfter(t *testing.T, s server) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// Whatever ends the primary, the standby has what it committed last, and takes
// over.
func TestStandby_TakesOver(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		kill func(*local.Postgres) error
	}{
		{"Immediate", func(pg *local.Postgres) error { return pg.Kill() }},
		{"SIGKILL", func(pg *local.Postgres) error {
			err := syscall.Kill(pg.PID(), syscall.SIGKILL)
			<-pg.Done()
			return err
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := postgresKind()
			primary, standby := mustFollow(t)
			mustKeep(t, k, primary)
			if err := test.kill(primary); err != nil {
				t.Fatal(err)
			}
			if err := add(t.Context(), standby); err == nil {
				t.Error("a standby that was not promoted takes writes")
			}
			if err := standby.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustRecall(t, k, standby)
			if err := add(t.Context(), standby); err != nil {
				t.Errorf("the promoted standby: %v", err)
			}
		})
	}
}

// A commit is not acknowledged before the standby has it.
func TestPrimary_WaitsForItsStandby(t *testing.T) {
	t.Parallel()
	k := postgresKind()
	primary, standby := mustFollow(t)
	mustKeep(t, k, primary)
	if err := standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- add(t.Context(), primary) }()
	testenv.Eventually(t, "the commit waits for the standby", func() bool { return waitsForStandby(t, primary) })
	if rows := count(t, primary); rows != 1 {
		t.Errorf("%d rows are to be seen, want the one from before", rows)
	}
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func add(ctx context.Context, s server) error {
	return withPostgres(ctx, s.URL(), func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `INSERT INTO kept VALUES ('more')`)
		return err
	})
}

func count(t *testing.T, s server) (rows int) {
	t.Helper()
	err := withPostgres(t.Context(), s.URL(), func(conn *pgx.Conn) error {
		return conn.QueryRow(t.Context(), `SELECT count(*) FROM kept`).Scan(&rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func waitsForStandby(t *testing.T, s server) (waits bool) {
	t.Helper()
	err := withPostgres(t.Context(), s.URL(), func(conn *pgx.Conn) error {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`
		return conn.QueryRow(t.Context(), sql).Scan(&waits)
	})
	if err != nil {
		t.Fatal(err)
	}
	return waits
}
