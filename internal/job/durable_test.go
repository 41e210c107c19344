package job_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/postgres/postgrestest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// An operator sets synchronous_commit off while connections are open, and the server crashes:
// every job that was accepted over those connections is still there.
func TestAcceptedSurvivesAReloadAndACrash(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServerWith(t, map[string]string{
		"synchronous_commit": "",
		"wal_writer_delay":   "10s", // what a commit does not flush stays unflushed
	})
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL(), Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, _ := acceptor(t, pool, manyQueued)
	if _, _, err := a.Accept(t.Context(), deposit(user, account, "before")); err != nil {
		t.Fatal(err)
	}
	ledgertest.Exec(t, pool, `ALTER SYSTEM SET synchronous_commit = off`)
	ledgertest.Exec(t, pool, `SELECT pg_reload_conf()`)
	plain, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close(t.Context()) //nolint:errcheck // its server is gone by then
	testenv.Eventually(t, "a plain session follows the server", func() bool {
		var commit string
		return plain.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&commit) == nil && commit == "off"
	})
	const jobs = 20
	ids := make([]uuid.UUID, jobs)
	var group errgroup.Group
	for i := range jobs {
		group.Go(func() error {
			accepted, _, err := a.Accept(t.Context(), deposit(user, account, fmt.Sprint(i)))
			ids[i] = accepted.ID
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	for _, id := range ids {
		if _, err := job.NewReader(pool).Job(t.Context(), user, id); err != nil {
			t.Error(err)
		}
	}
}

// Behind a pooler another client has made the shared session's commits wait for no flush, and the
// server crashes: every job that was accepted is still there, alone or in a batch.
func TestAcceptedSurvivesACrash_Pooler(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServerWith(t, map[string]string{"wal_writer_delay": "10s"}) // what a commit does not flush stays unflushed
	bouncer := postgrestest.Pooler(t, server, 1)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: bouncer.URL(), Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, _ := acceptor(t, pool, manyQueued)
	for n, accept := range []func(key string) (uuid.UUID, error){
		func(key string) (uuid.UUID, error) {
			accepted, _, err := a.Accept(t.Context(), deposit(user, account, key))
			return accepted.ID, err
		},
		func(key string) (uuid.UUID, error) {
			accepted, err := a.AcceptBatch(t.Context(), []job.Request{deposit(user, account, key)})
			if err != nil {
				return uuid.Nil, err
			}
			return accepted[0].Job.ID, nil
		},
	} {
		testenv.Meddle(t, bouncer)
		id, err := accept(fmt.Sprint("key-", n))
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "the server to be back", func() bool { return pool.Ping(t.Context()) == nil })
		if _, err := job.NewReader(pool).Job(t.Context(), user, id); err != nil {
			t.Errorf("the job of accept %d: %v", n, err)
		}
	}
}
