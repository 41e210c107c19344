package job_test

import (
	"testing"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Depths counts the queued jobs of each account that has some, and dates the oldest.
func TestDepths(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	one, two := ledgertest.Account(t, pool, user, 0), ledgertest.Account(t, pool, user, 0)
	ledgertest.Job(t, pool, one, ledger.Deposit, 1)
	ledgertest.Unguarded(t, pool, `UPDATE jobs SET created_at = created_at - interval '1 hour'`)
	for range 2 {
		ledgertest.Job(t, pool, one, ledger.Deposit, 1)
	}
	done := ledgertest.Job(t, pool, two, ledger.Deposit, 1)
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), done, 1); err != nil {
		t.Fatal(err)
	}
	var all []job.Depth
	if err := job.Depths(t.Context(), pool, func(d job.Depth) { all = append(all, d) }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].AccountID != one.ID || all[0].Account != one.Number || all[0].Jobs != 3 || all[0].Oldest < time.Hour || all[0].Oldest > 2*time.Hour {
		t.Errorf("%+v, want three jobs of account %d, the oldest an hour old", all, one.ID)
	}
}
