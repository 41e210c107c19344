package ledger_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/postgres/postgrestest"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// ApplyShared returns once a batch is as durable as a commit of its own. Here a synchronous standby
// does not answer, so each such commit waits: one of the batch, for all its jobs.
func TestApplyFlushesOnceABatch(t *testing.T) {
	t.Parallel()
	pool, server := ownServer(t)
	checkFlushes(t, pool, server, ledger.NewApplier(pool))
}

// So it does behind a pooler, where another client has made the shared session's commits wait for no
// flush.
func TestApplyFlushesOnceABatch_Pooler(t *testing.T) {
	t.Parallel()
	pool, server := ownServer(t)
	bouncer := postgrestest.Pooler(t, server, 1)
	pooled, err := postgres.Open(t.Context(), postgres.Config{URL: bouncer.URL(), Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pooled.Close)
	if err := pooled.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Meddle(t, bouncer)
	checkFlushes(t, pool, server, ledger.NewApplier(pooled))
}

func checkFlushes(t *testing.T, pool *pgxpool.Pool, server *local.Postgres, applier *ledger.Applier) {
	t.Helper()
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
		troubled int
	}{
		{"Several", []ledger.Due{queued(1), queued(1), queued(1)}, 3, 0},
		{"LastWroteNothing", []ledger.Due{queued(1), queued(1), done}, 2, 0},
		{"LastRefused", []ledger.Due{queued(1), queued(1), queued(13)}, 2, 1},
		{"RefusedInTheMiddle", []ledger.Due{queued(1), queued(13), queued(1)}, 2, 1},
		{"Rejected", []ledger.Due{{JobID: ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Withdrawal, 1), Jobs: 1}}, 1, 0},
		{"NothingToDo", []ledger.Due{done, done}, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			back := testenv.AwayStandby(t, server.URL())
			returned := make(chan [2]int, 1)
			go func() {
				applied, _, troubled := applier.ApplyShared(t.Context(), test.due, 64)
				returned <- [2]int{len(applied), len(troubled)}
			}()
			if test.finished > 0 {
				testenv.Eventually(t, "the batch to wait for the standby", func() bool { return waiting(t, pool) == 1 })
				select {
				case got := <-returned:
					t.Fatalf("returned %d jobs that no standby has", got[0])
				default:
				}
				back()
			}
			if got, want := <-returned, [2]int{test.finished, test.troubled}; got != want {
				t.Errorf("finished and troubled jobs: %v, want %v", got, want)
			}
			back()
		})
	}
}

// Other sessions see all transactions of a batch but the last as committed while the last one
// waits for the standby.
func TestApplyCommitsAheadOfTheFlush(t *testing.T) {
	t.Parallel()
	pool, server := ownServer(t)
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
	testenv.Eventually(t, "all transactions but the last to be seen", func() bool { return countSucceeded(t, pool) == len(due)-1 })
	back()
	<-ended
	for _, d := range due {
		if got := readJob(t, pool, d.JobID); got.Status != "succeeded" {
			t.Errorf("job %s: %s", d.JobID, got)
		}
	}
}

// ownServer starts a server for the test, whose commits a synchronous standby can delay.
func ownServer(t *testing.T) (pool *pgxpool.Pool, server *local.Postgres) {
	t.Helper()
	server = testenv.PostgresServerWith(t, map[string]string{"synchronous_commit": ""})
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, server
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
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM job_states WHERE status = 'succeeded'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
