package ledger_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// While a session holds a snapshot, the queue's index keeps an entry of each finished job. An
// apply does not read them.
func TestApplyUnderASnapshot(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	holder, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context()) //nolint:errcheck // it has ended by then
	if _, err := holder.Exec(t.Context(), `SELECT FROM jobs`); err != nil {
		t.Fatal(err)
	}
	const jobs = 1500
	var last uuid.UUID
	for range jobs {
		last = ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	}
	for applied := 0; applied < jobs; {
		some, _, err := ledger.NewApplier(pool).Apply(t.Context(), last, 64)
		if err != nil || len(some) == 0 {
			t.Fatal(len(some), err)
		}
		applied += len(some)
	}
	const few = 200 // the last finished jobs, whose transactions the search cannot know to have ended
	testenv.Eventually(t, "the transactions of other tests on the server to end", func() bool {
		next := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
		n := entriesOfApply(t, pool, next)
		if n == 0 {
			t.Fatal("an apply reads nothing of the queue")
		}
		apply(t, pool, next)
		return n <= few
	})
}

// entriesOfApply returns how many entries of the queue's index the apply of a job reads. It rolls
// the apply back.
func entriesOfApply(t *testing.T, pool *pgxpool.Pool, job uuid.UUID) (n int) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // nothing is to be kept
	read := func() (n int) {
		if err := tx.QueryRow(t.Context(), `SELECT pg_stat_get_xact_tuples_returned('queue_pkey'::regclass)`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := read() // what the session has read and not reported yet
	if _, err := tx.Exec(t.Context(), `SELECT apply_job($1, $2, 0)`, job, ledger.MaxAmount); err != nil {
		t.Fatal(err)
	}
	return read() - before
}

// A job that is committed only when many jobs with higher positions are finished is applied
// before any job that is sent after its commit: the search for the oldest queued job finds it.
func TestApplyFindsWhatIsCommittedLate(t *testing.T) {
	t.Parallel()
	const insertSQL = `INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount)
		VALUES ($1, $2, (SELECT user_id FROM accounts WHERE id = $2), $3, 'deposit', 1)`
	tests := map[string]struct {
		first  string // statement of the late accept's transaction
		insert string // its second and last statement
	}{
		"Inserted":          {insert: insertSQL},
		"InASubtransaction": {first: `SAVEPOINT below`, insert: insertSQL},
		"PositionDrawn": {insert: strings.Replace(insertSQL, "'deposit', 1)", // waits after it has drawn its position
			`'deposit', (SELECT 1 FROM pg_advisory_xact_lock(7)))`, 1)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
			gate, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer gate.Rollback(t.Context()) //nolint:errcheck // it has ended by then
			if _, err := gate.Exec(t.Context(), `SELECT pg_advisory_xact_lock(7)`); err != nil {
				t.Fatal(err)
			}
			late := uuid.New()
			inserted, commit := make(chan error, 1), make(chan struct{})
			committed := make(chan error, 1)
			go func() {
				committed <- pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					if _, err := tx.Exec(t.Context(), test.first); err != nil {
						return err
					}
					_, err := tx.Exec(t.Context(), test.insert, late, account.ID, late.String())
					inserted <- err
					<-commit
					return err
				})
			}()
			if name == "PositionDrawn" {
				testenv.Eventually(t, "the late accept to have drawn its position", func() (waits bool) {
					const sql = `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted
						AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`
					return pool.QueryRow(t.Context(), sql).Scan(&waits) == nil && waits
				})
			} else if err := <-inserted; err != nil {
				t.Fatal(err)
			}
			for range 10 {
				apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
			}
			if err := gate.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			close(commit)
			if err := <-committed; err != nil {
				t.Fatal(err)
			}
			after := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
			apply(t, pool, after)
			if first, second := readJob(t, pool, late), readJob(t, pool, after); first.Status != "succeeded" || *first.Seq >= *second.Seq {
				t.Errorf("the late job is %s; the one sent after it is %s", first, second)
			}
			ledgertest.Check(t, pool)
		})
	}
}

// A job that is replayed long after later jobs have finished is applied before the jobs that are
// sent after the replay.
func TestApplyFindsWhatWasReplayed(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	failed := ledgertest.Job(t, pool, account, ledger.Deposit, 13)
	applier := ledger.NewApplier(pool)
	for range ledger.MaxAttempts {
		_, _, _ = applier.Apply(t.Context(), failed, 1)
	}
	for range 10 {
		apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	}
	ledgertest.Exec(t, pool, `ALTER TABLE transactions DROP CONSTRAINT unlucky`)
	ledgertest.Replay(t, pool, failed)
	after := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	apply(t, pool, after)
	if first, second := readJob(t, pool, failed), readJob(t, pool, after); first.Status != "succeeded" || *first.Seq >= *second.Seq {
		t.Errorf("the replayed job is %s; the one sent after it is %s", first, second)
	}
}

// An account that pg_dump took from a server with far higher transaction ids stores the ids of
// this server from its next apply on.
func TestApplyAfterARestoreWithLowerIDs(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	ledgertest.Unguarded(t, pool, `UPDATE accounts SET settling = 1000000000, settling_xid = '9000000000000'`)
	var second int64 // a job's position
	for n := range 3 {
		id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
		apply(t, pool, id)
		if n == 1 {
			if err := pool.QueryRow(t.Context(), `SELECT position FROM jobs WHERE id = $1`, id).Scan(&second); err != nil {
				t.Fatal(err)
			}
		}
	}
	testenv.Eventually(t, "the transactions under way to end", func() bool {
		apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
		var doneTo, last int64
		const sql = `SELECT done_to, (SELECT max(position) FROM jobs) FROM accounts`
		if err := pool.QueryRow(t.Context(), sql).Scan(&doneTo, &last); err != nil {
			t.Fatal(err)
		}
		if doneTo > last {
			t.Fatalf("done_to says that no job up to position %d is queued, and the last has %d", doneTo, last)
		}
		return doneTo >= second
	})
}

// A transaction with a higher id than an insert that is not over may have drawn a lower position
// than that insert's last ones. Its job, committed late, comes before a job that is sent then.
func TestApplyFindsAPositionDrawnInBetween(t *testing.T) {
	t.Parallel()
	const insertSQL = `INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount)
		VALUES ($1, $2, (SELECT user_id FROM accounts WHERE id = $2), $3, 'deposit', 1)`
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	begin := func() (tx pgx.Tx) {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // nothing, after its commit
		return tx
	}
	insert := func(tx pgx.Tx) uuid.UUID {
		id := uuid.New()
		if _, err := tx.Exec(t.Context(), insertSQL, id, account.ID, id.String()); err != nil {
			t.Fatal(err)
		}
		return id
	}
	commit := func(tx pgx.Tx) {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first := begin()
	if _, err := first.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil { // as jobs_take_transaction_id does
		t.Fatal(err)
	}
	second := begin()
	late := insert(second)
	jobs := []uuid.UUID{insert(first), insert(first)}
	commit(first)
	for _, id := range jobs {
		apply(t, pool, id)
	}
	commit(second)
	after := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	apply(t, pool, after)
	if one, other := readJob(t, pool, late), readJob(t, pool, after); one.Status != "succeeded" || *one.Seq >= *other.Seq {
		t.Errorf("the job that was committed first is %s, the job that was sent after it %s", one, other)
	}
}
