// Package ledgertest makes what tests that move money start from, and checks
// what they must end with.
package ledgertest

import (
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

// User makes a user and answers with the id.
func User(t testing.TB, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	id := uuid.New()
	Exec(t, pool, `INSERT INTO users (id, email, password_hash) VALUES ($1, $2, '')`, id, id.String()+"@example.com")
	return id
}

// Account opens an account of the user's.
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

// Job accepts a job in the plainest way.
func Job(t testing.TB, pool *pgxpool.Pool, account ledger.Account, entry ledger.EntryType, amount int64) uuid.UUID {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	Exec(t, pool, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT $1, id, user_id, $3, $4, $1::uuid::text FROM accounts WHERE id = $2`, id, account.ID, string(entry), amount)
	return id
}

// Exec runs a statement that must work.
func Exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Unguarded runs statements past the rules of accounts, jobs and their histories, and
// leaves the rules off: for what only a restore, or an owner, could do.
func Unguarded(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	const off = `ALTER TABLE accounts DISABLE TRIGGER USER; ALTER TABLE jobs DISABLE TRIGGER USER;
		ALTER TABLE archived_jobs DISABLE TRIGGER USER; ALTER TABLE transactions DISABLE TRIGGER USER; `
	Exec(t, pool, off+sql)
}
