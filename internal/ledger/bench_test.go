package ledger_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// BenchmarkApply calls Apply for each job of one account. Postgres's fsync is off, so it measures
// what the code costs, not the disk.
func BenchmarkApply(b *testing.B) {
	pool := testenv.Pool(b)
	account := ledgertest.Account(b, pool, ledgertest.User(b, pool), 0)
	applier := ledger.NewApplier(pool)
	ids := make([]uuid.UUID, b.N)
	for i := range ids {
		ids[i] = ledgertest.Job(b, pool, account, ledger.Deposit, 1)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, id := range ids {
		if _, _, err := applier.Apply(b.Context(), id, 64); err != nil {
			b.Fatal(err)
		}
	}
}
