package ledger_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A database whose sequences are behind, as logical replication leaves it, is served only after
// `api migrate`.
func TestSequenceBehind(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, sql, want string }{
		{"Positions", `SELECT setval('job_positions', 1, false)`, "job_positions"},
		{"PositionsByOne", `SELECT setval('job_positions', (SELECT max(position) FROM jobs), false)`, "job_positions"},
		{"PositionsOfQueuedJobs", `DELETE FROM jobs USING transactions WHERE id = job_id; SELECT setval('job_positions', 1, false)`, "job_positions"},
		{"PositionsOfTheArchive", ledgertest.ToArchive + ` WHERE status <> 'queued'; DELETE FROM jobs; DELETE FROM queue;
			SELECT setval('job_positions', 1, false)`, "job_positions"},
		{"AccountIDs", `SELECT setval('accounts_id_seq', 1, false)`, "accounts_id_seq"},
		{"AccountIDsOfAHistory", `DELETE FROM accounts; DELETE FROM jobs; DELETE FROM queue; SELECT setval('accounts_id_seq', 1, false)`, "accounts_id_seq"},
		{"AccountIDsOfAQueue", `DELETE FROM accounts; DELETE FROM transactions; SELECT setval('accounts_id_seq', 1, false)`, "accounts_id_seq"},
		{"AccountIDsOfARejection", `DELETE FROM accounts; DELETE FROM transactions; INSERT INTO rejections SELECT account_id, position, job_id, now(), 'x' FROM queue;
			DELETE FROM queue; SELECT setval('accounts_id_seq', 1, false)`, "accounts_id_seq"},
		{"AccountIDsOfAFailure", `DELETE FROM accounts; DELETE FROM transactions; INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'x' FROM queue;
			DELETE FROM queue; SELECT setval('accounts_id_seq', 1, false)`, "accounts_id_seq"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t), Serving: true})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
			ledgertest.Job(t, pool, account, ledger.Deposit, 1)
			if err := ledger.CheckSequences(t.Context(), pool); err != nil {
				t.Fatalf("before: %v", err)
			}
			ledgertest.Unguarded(t, pool, test.sql)
			err = ledger.CheckSequences(t.Context(), pool)
			if !errors.Is(err, ledger.ErrSequenceBehind) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "api migrate") {
				t.Errorf("check: %v, want an error that names %s and says what to do", err, test.want)
			}
			var mismatches []string
			if _, err := ledger.Verify(t.Context(), pool, func(m string) { mismatches = append(mismatches, m) }, func(ledger.Verification) {}); err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(mismatches, "\n"); !strings.Contains(all, "sequence "+test.want) {
				t.Errorf("verify finds %q, want %s", all, test.want)
			}
			moved, err := ledger.AdvanceSequences(t.Context(), pool)
			if err != nil || len(moved) != 1 || !strings.Contains(moved[0], test.want) {
				t.Errorf("moved %q, %v", moved, err)
			}
			if err := ledger.CheckSequences(t.Context(), pool); err != nil {
				t.Errorf("after: %v", err)
			}
			if moved, err := ledger.AdvanceSequences(t.Context(), pool); err != nil || len(moved) != 0 {
				t.Errorf("moved again: %q, %v", moved, err)
			}
		})
	}
}

// A new database is not behind.
func TestSequencesOfANewDatabase(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	if err := ledger.CheckSequences(t.Context(), pool); err != nil {
		t.Error(err)
	}
	if moved, err := ledger.AdvanceSequences(t.Context(), pool); err != nil || len(moved) != 0 {
		t.Errorf("moved %q, %v", moved, err)
	}
}

// The sequence does not give again a number that an insert under way has drawn: AdvanceSequences
// waits for the insert to end.
func TestAdvanceSequencesWaitsForInserts(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	ledgertest.Exec(t, pool, `SELECT setval('job_positions', 1, false)`)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it has ended
	var drawn int64
	if err := tx.QueryRow(t.Context(), `SELECT setval('job_positions', 40)`).Scan(&drawn); err != nil {
		t.Fatal(err)
	}
	ledgertest.Exec(t, pool, `SELECT setval('job_positions', 1, false)`)
	const insert = `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, position)
		SELECT gen_random_uuid(), id, user_id, 'deposit', 1, 'under-way', 41 FROM accounts`
	if _, err := tx.Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := ledger.AdvanceSequences(t.Context(), pool)
		done <- err
	}()
	testenv.Eventually(t, "the repair to wait", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'jobs'::regclass AND NOT granted)`
		if err := pool.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var next int64
	if err := pool.QueryRow(t.Context(), `SELECT nextval('job_positions')`).Scan(&next); err != nil || next != 42 {
		t.Errorf("next is %d, %v; want 42", next, err)
	}
}

// An id that the sequence gives again is an internal error, not the client's: its number is free.
func TestOpenWithAnIDThatIsThere(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"WithAKey": "k", "WithoutAKey": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			user := ledgertest.User(t, pool)
			ledgertest.Account(t, pool, user, 0)
			ledgertest.Exec(t, pool, `SELECT setval('accounts_id_seq', 1, false)`)
			_, _, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Number: "fresh", Currency: "KRW", Key: key})
			if err == nil || errors.Is(err, ledger.ErrNumberTaken) || errors.Is(err, ledger.ErrKeyReused) {
				t.Errorf("got %v, want an internal error", err)
			}
		})
	}
}

// No two jobs of an account have one position.
func TestPositionsAreUnique(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	const repeated = `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, position)
		SELECT gen_random_uuid(), account_id, user_id, type, amount, 'k', position FROM jobs`
	if _, err := pool.Exec(t.Context(), repeated); err == nil || !strings.Contains(err.Error(), "queue_pkey") {
		t.Errorf("a queued job's position a second time: %v", err)
	}
	var unique int
	const sql = `SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
		WHERE relname IN ('queue_pkey', 'transactions_jobs', 'rejections_pkey', 'failures_pkey', 'archived_jobs_rejected') AND indisunique AND indisvalid`
	if err := pool.QueryRow(t.Context(), sql).Scan(&unique); err != nil || unique != 5 {
		t.Errorf("%d of the five indexes are unique, %v", unique, err)
	}
}
