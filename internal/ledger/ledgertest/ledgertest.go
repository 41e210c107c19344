// Package ledgertest creates the users, accounts and jobs of tests, and checks the ledger that they
// end with.
package ledgertest

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
)

// Check verifies the whole ledger and fails the test for each mismatch.
func Check(t testing.TB, pool *pgxpool.Pool) ledger.Verification {
	t.Helper()
	found, err := ledger.Verify(t.Context(), pool,
		func(mismatch string) { t.Errorf("verify: %s", mismatch) },
		func(ledger.Verification) {})
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	return found
}

// User creates a user and returns its id.
func User(t testing.TB, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	id := uuid.New()
	Exec(t, pool, `INSERT INTO users (id, email, email_key, password_hash) VALUES ($1, $2, $2, '')`, id, id.String()+"@example.com")
	return id
}

// Account opens an account of the user.
func Account(t testing.TB, pool *pgxpool.Pool, userID uuid.UUID, initialDeposit int64) ledger.Account {
	t.Helper()
	account, _, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{
		UserID: userID, Currency: "KRW", InitialDeposit: initialDeposit,
	})
	if err != nil {
		t.Fatalf("open account: %v", err)
	}
	return account
}

// Job inserts a queued job and returns its id.
func Job(t testing.TB, pool *pgxpool.Pool, account ledger.Account, typ ledger.EntryType, amount int64) uuid.UUID {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	Exec(t, pool, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT $1, id, user_id, $3, $4, $1::uuid::text FROM accounts WHERE id = $2`, id, account.ID, string(typ), amount)
	return id
}

// Replay queues a failed job again.
func Replay(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) {
	t.Helper()
	if err := ledger.NewOperator(pool, "a test").Replay(t.Context(), id, "a test"); err != nil {
		t.Fatal(err)
	}
}

// SetStatus sets an account's status.
func SetStatus(t testing.TB, pool *pgxpool.Pool, number string, status ledger.AccountStatus) {
	t.Helper()
	if _, err := ledger.NewOperator(pool, "a test").SetStatus(t.Context(), number, status, "a test"); err != nil {
		t.Fatal(err)
	}
}

// ToArchive copies jobs to the archive; a WHERE clause may follow. With the rules disabled the
// jobs and their rejections stay, unless the test deletes them.
const ToArchive = `INSERT INTO archived_jobs SELECT id, position, account_id, user_id, amount, created_at, finished_at, seq,
	balance_after, type, status, idempotency_key, description, failure FROM job_states`

// CountAttempts makes the database count the attempts that it refuses, for Attempts.
func CountAttempts(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	Exec(t, pool, `CREATE SEQUENCE attempts; GRANT SELECT, USAGE ON SEQUENCE attempts TO PUBLIC;
		CREATE FUNCTION count_attempt() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''public.attempts''); RETURN NULL; END';
		CREATE TRIGGER count_attempt AFTER UPDATE ON queue FOR EACH ROW EXECUTE FUNCTION count_attempt()`)
}

// Attempts returns how many attempts Postgres has refused since CountAttempts. It counts also
// attempts that were rolled back, and attempts of finished jobs, which the queue no longer holds.
func Attempts(t testing.TB, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT last_value - (NOT is_called)::int FROM attempts`).Scan(&n); err != nil {
		t.Fatalf("count attempts: %v", err)
	}
	return n
}

// Exec runs a statement, and fails the test on an error.
func Exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Unguarded runs statements in one transaction with the rules of accounts, jobs and transactions
// disabled: what only a restore or the tables' owner could do.
func Unguarded(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	Exec(t, pool, UnguardedSQL(sql))
}

// UnguardedSQL returns the statements that Unguarded runs.
func UnguardedSQL(sql string) string {
	const all = `DO $$ DECLARE guard record; BEGIN
		FOR guard IN SELECT tgrelid::regclass AS owner, tgname AS name FROM pg_trigger
			WHERE tgrelid = ANY ('{accounts,jobs,queue,rejections,failures,archived_jobs,transactions,operator_actions}'::regclass[]) AND NOT tgisinternal
		LOOP
			EXECUTE format('ALTER TABLE %s %s TRIGGER %I', guard.owner, '~', guard.name);
		END LOOP;
	END $$; `
	return strings.Replace(all, "~", "DISABLE", 1) + sql + "; " + strings.Replace(all, "~", "ENABLE ALWAYS", 1)
}
