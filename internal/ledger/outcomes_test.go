package ledger_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The times of an account's outcomes rise strictly in the order in which they took effect, also where
// Postgres's clock goes back.
func TestOutcomeTimesRise(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	// From here on the clock is behind all times of the account.
	ledgertest.Exec(t, pool, `UPDATE accounts SET answered_until = clock_timestamp() + interval '1 hour'`)
	var inOrder []uuid.UUID
	for range 3 {
		for _, job := range []struct {
			typ    ledger.EntryType
			amount int64
		}{{ledger.Deposit, 1}, {ledger.Withdrawal, 1000}, {ledger.Deposit, 13}, {ledger.Withdrawal, 1000}, {ledger.Withdrawal, 1}, {ledger.Deposit, 13}} {
			id := ledgertest.Job(t, pool, account, job.typ, job.amount)
			for range ledger.MaxAttempts {
				if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err == nil {
					break
				}
			}
			inOrder = append(inOrder, id)
		}
	}
	var outOfOrder int
	const sql = `SELECT count(*) FROM (
			SELECT finished_at, lag(finished_at) OVER (ORDER BY n) AS before
			FROM unnest($1::uuid[]) WITH ORDINALITY AS applied (id, n) LEFT JOIN job_states USING (id)
		) outcomes WHERE finished_at IS NULL OR finished_at <= before`
	if err := pool.QueryRow(t.Context(), sql, inOrder).Scan(&outOfOrder); err != nil {
		t.Fatal(err)
	}
	if outOfOrder > 0 {
		t.Errorf("%d of %d outcomes are not later than the one before", outOfOrder, len(inOrder))
	}
	ledgertest.Check(t, pool)
}
