package job_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// An accept returns no job before its commit, even when the insert has done all its work.
func TestAcceptReturnsAfterTheCommit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		atCommit string // what Postgres does between the insert and its commit
	}{
		{"CommitRefused", `RAISE EXCEPTION 'refused at the commit'`},
		{"CommitWaits", `PERFORM pg_advisory_xact_lock(1)`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			user := ledgertest.User(t, pool)
			account := ledgertest.Account(t, pool, user, 0)
			ledgertest.Exec(t, pool, `CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+test.atCommit+`; RETURN NULL; END $$`)
			ledgertest.Exec(t, pool, `CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON jobs
				DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit()`)
			defer holdLock(t, pool)()
			a, _ := acceptor(t, pool, manyQueued)
			a.Timeout = 1500 * time.Millisecond // which the commit outlasts where it waits for the lock
			got, _, err := a.Accept(t.Context(), deposit(user, account, "k"))
			if err == nil {
				t.Errorf("returned %+v before the commit", got)
			}
			if found := ledgertest.Check(t, pool); found.Jobs != 0 {
				t.Errorf("%d jobs, want none", found.Jobs)
			}
		})
	}
}

// holdLock holds advisory lock 1, for which a trigger of the test waits, until
// release is called.
func holdLock(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
		t.Fatal(err)
	}
	return func() { _ = holder.Rollback(context.WithoutCancel(t.Context())) } // a second call does nothing
}
