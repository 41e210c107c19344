package ledger_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/testenv"
)

// A batch is told of once it is as durable as a commit of its own: here a synchronous
// standby never answers, so that each wait lasts. All its transactions but one wait for
// nothing: their jobs are finished meanwhile.
func TestApplyFlushesOnceABatch(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServerWith(t, map[string]string{"synchronous_commit": ""})
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	user := ledgertest.User(t, pool)
	queued := func(amount int64) ledger.Due {
		return ledger.Due{JobID: ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, amount), Jobs: 1}
	}
	done := queued(1)
	apply(t, pool, done.JobID)
	tests := []struct {
		name     string
		due      []ledger.Due
		finished int
	}{
		{"Several", []ledger.Due{queued(1), queued(1), queued(1)}, 3},
		{"LastWroteNothing", []ledger.Due{queued(1), queued(1), done}, 2},
		{"LastRefused", []ledger.Due{queued(1), queued(1), queued(13)}, 2},
		{"RefusedInTheMiddle", []ledger.Due{queued(1), queued(13), queued(1)}, 2},
		{"Rejected", []ledger.Due{{JobID: ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Withdrawal, 1), Jobs: 1}}, 1},
		{"NothingToDo", []ledger.Due{done, done}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			back := testenv.AwayStandby(t, server.URL())
			told := make(chan []ledger.Applied, 1)
			go func() {
				applied, _, _ := ledger.NewApplier(pool).ApplyShared(t.Context(), test.due, 64)
				told <- applied
			}()
			if test.finished > 0 {
				testenv.Eventually(t, "the batch to wait for the standby", func() bool { return waiting(t, pool) == 1 })
				select {
				case applied := <-told:
					t.Fatalf("%d jobs are told of that no standby has", len(applied))
				default:
				}
				back()
			}
			if applied := <-told; len(applied) != test.finished {
				t.Errorf("applied %d, want %d", len(applied), test.finished)
			}
			back()
		})
	}
}

// All transactions of a batch but the last are committed, and seen by others, while the
// last one waits.
func TestApplyCommitsAheadOfTheFlush(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServerWith(t, map[string]string{"synchronous_commit": ""})
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	user := ledgertest.User(t, pool)
	var due []ledger.Due
	for range 20 {
		due = append(due, ledger.Due{JobID: ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1), Jobs: 1})
	}
	back := testenv.AwayStandby(t, server.URL())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ledger.NewApplier(pool).ApplyShared(t.Context(), due, 64)
	}()
	testenv.Eventually(t, "the others to be seen", func() bool { return countSucceeded(t, pool) == len(due)-1 })
	back()
	<-ended
	for _, d := range due {
		if got := readJob(t, pool, d.JobID); got.Status != "succeeded" {
			t.Errorf("job %s: %s", d.JobID, got)
		}
	}
}

// waiting counts the sessions that wait for a synchronous standby.
func waiting(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func countSucceeded(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM jobs WHERE status = 'succeeded'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
