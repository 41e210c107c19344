package statement_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A balance that is asked for while an apply has stamped its transaction and not committed
// stays what it was answered to be.
func TestBalance_WhileAnApplyIsOpen(t *testing.T) {
	t.Parallel()
	tests := map[string]func(stamp time.Time) time.Time{
		"Now":        func(time.Time) time.Time { return time.Time{} },
		"AtItsStamp": func(stamp time.Time) time.Time { return stamp },
		"JustAfter":  func(stamp time.Time) time.Time { return stamp.Add(time.Microsecond) },
		"ToCome":     func(stamp time.Time) time.Time { return stamp.Add(time.Hour) },
	}
	for name, at := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account, owned := open(t, pool, 100)
			statements := statement.New(pool, nil)
			idle(t, pool, account.ID)
			tx, stamp := beginApply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))

			type result struct {
				statement.Balance
				err error
			}
			answered := make(chan result, 1)
			go func() {
				balance, err := statements.Balance(t.Context(), owned, at(stamp))
				answered <- result{balance, err}
			}()
			testenv.Eventually(t, "for an answer, or for one that waits", func() bool {
				return len(answered) > 0 || isLocked(t, pool)
			})
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := <-answered
			if got.err != nil || got.At.After(time.Now()) {
				t.Fatalf("got %+v", got)
			}
			wantStays(t, statements, owned, got.Balance)
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
			wantStays(t, statements, owned, got.Balance)
		})
	}
}

// An answer stays also where the clock then goes back, or a standby takes over whose clock is
// slower: the next transaction is later than what was answered.
func TestBalance_ClockGoesBack(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	statements := statement.New(pool, nil)
	ahead := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	tests := map[string]struct{ at, want time.Time }{
		"Now":    {time.Time{}, ahead},
		"Ahead":  {ahead, ahead},
		"Before": {ahead.Add(-time.Minute), ahead.Add(-time.Minute)},
		"ToCome": {ahead.Add(time.Hour), ahead},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			account, owned := open(t, pool, 100)
			// As a clock that was an hour ahead has let it be answered.
			ledgertest.Exec(t, pool, `UPDATE accounts SET answered_until = $2 WHERE id = $1`, account.ID, ahead)
			got, err := statements.Balance(t.Context(), owned, tt.at)
			if err != nil || got.Seq != 1 || !got.At.Equal(tt.want) {
				t.Errorf("got %+v, %v, want seq 1 at %v", got, err, tt.want)
			}
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
			wantStays(t, statements, owned, got)
		})
	}
}

// What is answered while applies go on stays, every one, and time goes on with it.
func TestBalance_Stays(t *testing.T) {
	t.Parallel()
	const jobs, askers = 200, 4
	pool := testenv.Pool(t)
	account, owned := open(t, pool, 100)
	statements := statement.New(pool, nil)
	var ids []uuid.UUID
	for range jobs {
		ids = append(ids, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
	}
	done := make(chan struct{})
	answers := make([][]statement.Balance, askers)
	var asking sync.WaitGroup
	for i := range askers {
		asking.Go(func() {
			for last := false; !last; {
				select {
				case <-done:
					last = true
				default:
				}
				var at time.Time // now
				if i%2 == 1 {
					at = time.Now().Add(time.Duration(i-2) * time.Millisecond).Truncate(time.Microsecond)
				}
				got, err := statements.Balance(t.Context(), owned, at)
				if err != nil {
					t.Error(err)
					return
				}
				answers[i] = append(answers[i], got)
			}
		})
	}
	for _, id := range ids {
		apply(t, pool, id)
	}
	close(done)
	asking.Wait()
	for i, answers := range answers {
		for _, answer := range answers {
			wantStays(t, statements, owned, answer)
		}
		if last := answers[len(answers)-1]; i%2 == 0 && last.Seq != jobs+1 {
			t.Errorf("asked for now after the last apply: %+v", last)
		}
	}
	ledgertest.Check(t, pool)
}

// A balance that is asked for all the time writes once a second at most; one for a time that
// was answered before writes nothing.
func TestBalance_WritesSeldom(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account, owned := open(t, pool, 100)
	statements := statement.New(pool, nil)
	idle(t, pool, account.ID)
	got, err := statements.Balance(t.Context(), owned, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	until := answeredUntil(t, pool, account.ID)
	for _, at := range []time.Time{got.At, got.At.Add(-time.Second), got.At.AddDate(-1, 0, 0)} {
		wantAnswer(t, statements, owned, at)
	}
	if now := answeredUntil(t, pool, account.ID); !now.Equal(until) {
		t.Errorf("a time before %v was written as %v", until, now)
	}
	// A time ahead of the clock never is older than a second, however slow the test is.
	ledgertest.Exec(t, pool, `UPDATE accounts SET answered_until = $2 WHERE id = $1`, account.ID, until.Add(time.Hour))
	for range 3 {
		wantAnswer(t, statements, owned, time.Time{})
	}
	if now := answeredUntil(t, pool, account.ID); !now.Equal(until.Add(time.Hour)) {
		t.Errorf("now was written as %v, %v after the answer before", now, now.Sub(until))
	}
}

// idle makes the account one whose last transaction was yesterday.
func idle(t *testing.T, pool *pgxpool.Pool, accountID int64) {
	t.Helper()
	ledgertest.Unguarded(t, pool, fmt.Sprintf(`
		UPDATE accounts SET last_at = last_at - interval '1 day', created_at = created_at - interval '1 day' WHERE id = %d`, accountID))
	ledgertest.Unguarded(t, pool, fmt.Sprintf(`
		UPDATE transactions SET created_at = created_at - interval '1 day' WHERE account_id = %d`, accountID))
}

// beginApply applies a job in a transaction that the caller has to end, and answers with its
// time.
func beginApply(t *testing.T, pool *pgxpool.Pool, job uuid.UUID) (tx pgx.Tx, stamp time.Time) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(t.Context()) })
	if err := tx.QueryRow(t.Context(), `SELECT finished FROM apply_job($1, 1000000, 0)`, job).Scan(&stamp); err != nil {
		t.Fatal(err)
	}
	return tx, stamp
}

func apply(t *testing.T, pool *pgxpool.Pool, job uuid.UUID) {
	t.Helper()
	tx, _ := beginApply(t, pool, job)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// isLocked reports whether a session in the test's database waits for a lock.
func isLocked(t *testing.T, pool *pgxpool.Pool) (waits bool) {
	t.Helper()
	const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`
	if err := pool.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
		t.Fatal(err)
	}
	return waits
}

func answeredUntil(t *testing.T, pool *pgxpool.Pool, accountID int64) (until time.Time) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT answered_until FROM accounts WHERE id = $1`, accountID).Scan(&until); err != nil {
		t.Fatal(err)
	}
	return until
}

func wantAnswer(t *testing.T, statements *statement.Statements, owned ledger.Owned, at time.Time) {
	t.Helper()
	if _, err := statements.Balance(t.Context(), owned, at); err != nil {
		t.Error(err)
	}
}

// wantStays asks again for the time for which a balance was answered.
func wantStays(t *testing.T, statements *statement.Statements, owned ledger.Owned, answered statement.Balance) {
	t.Helper()
	again, err := statements.Balance(t.Context(), owned, answered.At)
	if err != nil || !again.At.Equal(answered.At) || again.Seq != answered.Seq || again.Balance != answered.Balance {
		t.Errorf("answered %+v, and later %+v, %v", answered, again, err)
	}
}
