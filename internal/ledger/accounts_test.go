package ledger_test

import (
	"errors"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A key that has made a job opens no account, also when the job is archived.
func TestOpenWithAJobsKey(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	open := func(when string) {
		t.Helper()
		got, replayed, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: id.String()})
		if !errors.Is(err, ledger.ErrKeyReused) {
			t.Errorf("%s: opened %+v, replayed %t, %v; want ErrKeyReused", when, got, replayed, err)
		}
	}
	open("live")
	apply(t, pool, id)
	ledgertest.Exec(t, pool, ledgertest.ToArchive+`; DELETE FROM jobs`)
	open("archived")
}
