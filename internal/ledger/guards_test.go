package ledger_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Apply does not return a job whose row it has read and whose commit it has not: here the
// connection dies between the two. Nor does it return the jobs before it in the batch: they are
// committed, but may not be flushed.
func TestApplyReturnsOnlyCommittedJobs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		amounts []int64 // of the account's jobs
	}{
		{"Alone", []int64{killedAmount}},
		{"FirstOfABatch", []int64{1, killedAmount, 2, 3}},
		{"LastOfABatch", []int64{1, 2, killedAmount}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			for _, sql := range faultSQL {
				ledgertest.Exec(t, pool, sql)
			}
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
			ledgertest.Exec(t, pool, `INSERT INTO faults VALUES ($1, $2, 'commit')`, account.ID, killedAmount)
			var ids []uuid.UUID
			for _, amount := range test.amounts {
				ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, amount))
			}
			before := slices.Index(test.amounts, killedAmount)
			applied, more, err := ledger.NewApplier(pool).Apply(t.Context(), ids[len(ids)-1], 64)
			alone := min(before, 1) // the first job is a batch of its own
			if err == nil || !more || len(applied) != alone {
				t.Errorf("returned %+v, more %t, %v before the commit", applied, more, err)
			}
			for i, id := range ids[before:] {
				if got := readJob(t, pool, id).String(); got != queued {
					t.Errorf("job %d is %s, want %s", before+i, got, queued)
				}
			}
			ledgertest.Exec(t, pool, `DELETE FROM faults`)
			apply(t, pool, ids[len(ids)-1])
			ledgertest.Check(t, pool)
		})
	}
}

// An account's time moves forwards only, and no attempt is spent, where the clocks that date its
// jobs are ahead or are set back.
func TestApplyTimeNeverGoesBack(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.CountAttempts(t, pool)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	var last string
	for _, clock := range []string{"1 hour", "0", "-1 hour", "1 day", "0"} {
		id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
		ledgertest.Unguarded(t, pool, `UPDATE jobs SET created_at = now() + '`+clock+`' WHERE id = '`+id.String()+`'`)
		for _, job := range apply(t, pool, id) {
			if job.FinishedAt.Before(job.CreatedAt) {
				t.Errorf("clock %s: finished at %v, accepted at %v", clock, job.FinishedAt, job.CreatedAt)
			}
			if at := job.FinishedAt.UTC().Format("2006-01-02 15:04:05.000000"); at <= last {
				t.Errorf("clock %s: finished at %s, after %s", clock, at, last)
			} else {
				last = at
			}
		}
	}
	if n := ledgertest.Attempts(t, pool); n != 0 {
		t.Errorf("Postgres refused %d attempts", n)
	}
	ledgertest.Check(t, pool)
}

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
