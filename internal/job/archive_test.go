package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestParseArchiveBefore(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name, text string
		want       string // empty for an error
	}{
		{"Date", "2025-01-31", "2025-01-31T00:00:00Z"},
		{"Time", "2025-01-31T12:00:00+09:00", "2025-01-31T03:00:00Z"},
		{"ThirtyDays", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"},
		{"ErrTooRecent", "2026-03-01T12:00:01Z", ""},
		{"ErrTooRecent/Future", "2027-01-01", ""},
		{"NoSuchDate", "2025-02-30", ""},
		{"Empty", "", ""},
		{"Age", "30d", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := job.ParseArchiveBefore(test.text, now)
			switch {
			case test.want == "":
				if err == nil {
					t.Errorf("got %v, want an error", got)
				}
			case err != nil || got.UTC().Format(time.RFC3339) != test.want:
				t.Errorf("got %v, %v; want %s", got, err, test.want)
			}
		})
	}
	if _, err := job.ParseArchiveBefore("2026-03-30", now); !errors.Is(err, job.ErrTooRecent) {
		t.Errorf("yesterday: %v, want ErrTooRecent", err)
	}
}

// soon is after all that a test has done: everything that has ended may move.
func soon() time.Time { return time.Now().Add(time.Minute) }

// archive moves what ended before a time, and checks how many jobs that are.
func archive(t *testing.T, pool *pgxpool.Pool, before time.Time, want int64) {
	t.Helper()
	moved, err := job.Archive(t.Context(), pool, before, func(int64) {})
	if err != nil || moved != want {
		t.Fatalf("moved %d jobs, %v; want %d", moved, err, want)
	}
}

// count counts rows of a table.
func count(t *testing.T, pool *pgxpool.Pool, table string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// inFull is a job with what its pointers point to.
func inFull(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What anybody has heard of a job they hear again when it is archived: by its
// key, by its id, in every page of every list, and in the history.
func TestArchive(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user, stranger := ledgertest.User(t, pool), ledgertest.User(t, pool)
	account, other := ledgertest.Account(t, pool, user, 100), ledgertest.Account(t, pool, user, 0)
	ledgertest.Exec(t, pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	a, _ := acceptor(t, pool, manyQueued)
	reader, applier, accounts := job.NewReader(pool), ledger.NewApplier(pool), ledger.NewAccounts(pool)

	text := "rent"
	var requests []job.Request
	var jobs []job.Job
	ask := func(entry ledger.EntryType, amount int64, description *string) uuid.UUID {
		t.Helper()
		req := job.Request{
			UserID: user, Account: account.Number, Type: entry, Amount: amount, Description: description, Key: fmt.Sprint("key", len(requests)),
		}
		accepted, _, err := a.Accept(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		requests, jobs = append(requests, req), append(jobs, accepted)
		return accepted.ID
	}
	settle := func(id uuid.UUID) {
		for range ledger.MaxAttempts {
			_, _, _ = applier.Apply(t.Context(), id, 1) // the unlucky one's error
		}
	}
	settle(ask(ledger.Deposit, 5, &text))
	settle(ask(ledger.Withdrawal, 1000, nil))
	failed := ask(ledger.Deposit, 13, nil)
	settle(failed)
	settle(ask(ledger.Withdrawal, 7, nil))
	middle := jobs[len(jobs)-1].ID
	var border time.Time
	if err := pool.QueryRow(t.Context(), `SELECT finished_at FROM job_states WHERE id = $1`, middle).Scan(&border); err != nil {
		t.Fatal(err)
	}
	settle(ask(ledger.Deposit, 8, &text))
	settle(ask(ledger.Withdrawal, 2000, &text))
	ask(ledger.Deposit, 9, nil)

	// heard is all that a client can read.
	heard := func() (told []string) {
		for i, req := range requests {
			again, replayed, err := a.Accept(t.Context(), req)
			if err != nil || !replayed || again.ID != jobs[i].ID {
				t.Errorf("%s again: %s, replayed %t, %v; want job %s", req.Key, again.ID, replayed, err, jobs[i].ID)
			}
			read, err := reader.Job(t.Context(), user, jobs[i].ID)
			if err != nil || inFull(t, read) != inFull(t, again) {
				t.Errorf("%s reads as %s, %v; answered as %s", req.Key, inFull(t, read), err, inFull(t, again))
			}
			told = append(told, inFull(t, read))

			req.Amount++
			if _, _, err := a.Accept(t.Context(), req); !errors.Is(err, job.ErrKeyReused) {
				t.Errorf("%s for another amount: %v, want ErrKeyReused", req.Key, err)
			}
			opening := ledger.Opening{UserID: user, Currency: "KRW", Key: req.Key}
			if _, _, err := accounts.Open(t.Context(), opening); !errors.Is(err, ledger.ErrKeyReused) {
				t.Errorf("%s for an opening: %v, want ErrKeyReused", req.Key, err)
			}
			if _, err := reader.Job(t.Context(), stranger, jobs[i].ID); !errors.Is(err, job.ErrNotFound) {
				t.Errorf("%s read by a stranger: %v, want ErrNotFound", req.Key, err)
			}
		}
		for _, status := range append([]job.Status{""}, job.Statuses...) {
			for _, ascending := range []bool{true, false} {
				for limit := range len(jobs) + 1 {
					page := job.Page{Account: ledger.Owned{UserID: user, Number: account.Number}, Status: status, Ascending: ascending, Limit: limit + 1}
					told = append(told, fmt.Sprintf("%q ascending %t by %d: %s", status, ascending, page.Limit, inFull(t, walk(t, reader, page))))
				}
			}
		}
		return told
	}
	check := func(when string, archived int, want []string) {
		t.Helper()
		if n := count(t, pool, "archived_jobs"); n != archived {
			t.Errorf("%s: %d jobs are in the archive, want %d", when, n, archived)
		}
		for i, line := range heard() {
			if line != want[i] {
				t.Errorf("%s: hears %s\nbefore: %s", when, line, want[i])
			}
		}
		if n := count(t, pool, `transactions WHERE job_id IS NOT NULL AND NOT EXISTS
			(SELECT FROM jobs WHERE id = job_id UNION ALL SELECT FROM archived_jobs WHERE id = job_id)`); n > 0 {
			t.Errorf("%s: %d transactions of no job", when, n)
		}
		if found := ledgertest.Check(t, pool); int(found.Jobs) != len(jobs) {
			t.Errorf("%s: %d jobs, want %d", when, found.Jobs, len(jobs))
		}
	}
	before := heard()
	archive(t, pool, border, 2)
	check("with the older half archived", 2, before)
	archive(t, pool, border, 0)
	archive(t, pool, soon(), 3)
	check("with all archived that can be", 5, before)

	t.Run("LiveGoesOn", func(t *testing.T) {
		ledgertest.Exec(t, pool, `ALTER TABLE transactions DROP CONSTRAINT unlucky`)
		if err := applier.Replay(t.Context(), []uuid.UUID{failed}); err != nil {
			t.Errorf("replay a failed job: %v", err)
		}
		last := jobs[len(jobs)-1].ID
		if applied, _, err := applier.Apply(t.Context(), last, 10); err != nil || len(applied) != 2 {
			t.Errorf("applied %+v, %v; want the replayed and the queued job", applied, err)
		}
		if _, _, err := a.Accept(t.Context(), deposit(user, other, "fresh")); err != nil {
			t.Error(err)
		}
		archive(t, pool, soon(), 2)
		ledgertest.Check(t, pool)
	})
}

// walk reads a list to its end.
func walk(t *testing.T, reader *job.Reader, page job.Page) (ids []uuid.UUID) {
	t.Helper()
	for {
		jobs, err := reader.List(t.Context(), page)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			ids = append(ids, j.ID)
		}
		if len(jobs) < page.Limit {
			return ids
		}
		page.After = jobs[len(jobs)-1].Position
	}
}

// rejected makes n jobs that were rejected, deposits by the keys key1 to key n.
func rejected(t testing.TB, pool *pgxpool.Pool, account ledger.Account, n int) {
	t.Helper()
	ledgertest.Exec(t, pool, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, id, user_id, 'deposit', 100, 'key' || n
		FROM accounts, generate_series(1, $2) n WHERE id = $1`, account.ID, n)
	ledgertest.Exec(t, pool, `INSERT INTO rejections SELECT account_id, position, job_id, now(), 'balance_limit_exceeded' FROM queue`)
}

// A key that comes back at the very moment at which its job is archived, to any
// process, makes no second job.
func TestArchiveWhileKeysComeBack(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	const keys, clients = 4000, 32
	rejected(t, pool, account, keys)
	one, _ := acceptor(t, pool, manyQueued)
	two, _ := acceptor(t, pool, manyQueued)
	var clientsAtWork errgroup.Group
	var done atomic.Bool
	for client := range clients {
		a := []*job.Acceptor{one, two}[client%2]
		clientsAtWork.Go(func() error {
			for i := client; !done.Load(); i += 7 * clients {
				n := 1 + i%keys
				got, replayed, err := a.Accept(t.Context(), deposit(user, account, fmt.Sprint("key", n)))
				if want := fmt.Sprintf("00000000-0000-7000-8000-%012d", n); err == nil && (!replayed || got.ID.String() != want) {
					return fmt.Errorf("the key of job %s answers with %s, replayed %t", want, got.ID, replayed)
				}
				if err != nil && !errors.Is(err, job.ErrUnavailable) && !errors.Is(err, job.ErrKeyBusy) {
					return err
				}
			}
			return nil
		})
	}
	// What a key held back for a moment is left to the next run.
	for left := int64(keys); left > 0; {
		moved, err := job.Archive(t.Context(), pool, soon(), func(int64) {})
		if err != nil {
			t.Error(err)
			break
		}
		if left -= moved; moved == 0 && count(t, pool, "archived_jobs") == keys {
			break
		}
	}
	done.Store(true)
	if err := clientsAtWork.Wait(); err != nil {
		t.Error(err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != keys {
		t.Errorf("%d jobs, want %d", found.Jobs, keys)
	}
	if n := count(t, pool, "archived_jobs"); n != keys {
		t.Errorf("%d jobs are in the archive, want %d", n, keys)
	}
}

// A key that comes back in the very midst of a move, when its job is deleted and
// that is not committed, is refused at once; asked again it answers with the job.
func TestArchiveMeetsAKey(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	rejected(t, pool, account, 1)
	ledgertest.Exec(t, pool, `CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$`)
	ledgertest.Exec(t, pool, `CREATE TRIGGER halt AFTER DELETE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION halt()`)
	release := holdLock(t, pool)
	defer release()
	var moving errgroup.Group
	moving.Go(func() error {
		_, err := job.Archive(t.Context(), pool, soon(), func(int64) {})
		return err
	})
	testenv.Eventually(t, "the move waits", func() bool {
		return count(t, pool, `pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	a, _ := acceptor(t, pool, manyQueued)
	if got, _, err := a.Accept(t.Context(), deposit(user, account, "key1")); !errors.Is(err, job.ErrKeyBusy) {
		t.Errorf("in the midst of the move: %+v, %v; want ErrKeyBusy", got, err)
	}
	release()
	if err := moving.Wait(); err != nil {
		t.Error(err)
	}
	got, replayed, err := a.Accept(t.Context(), deposit(user, account, "key1"))
	if want := "00000000-0000-7000-8000-000000000001"; err != nil || !replayed || got.ID.String() != want {
		t.Errorf("the key of job %s answers with %s, replayed %t, %v", want, got.ID, replayed, err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 1 {
		t.Errorf("%d jobs, want 1", found.Jobs)
	}
}

// A move that waits for nobody leaves a job whose key is just being sent, and
// locks no key but those of the jobs that it moves.
func TestArchiveWaitsForNobody(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	rejected(t, pool, ledgertest.Account(t, pool, user, 0), 3)
	sender, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it is over by then
	if _, err := sender.Exec(t.Context(), `SELECT pg_advisory_xact_lock_shared($1)`, ledger.KeyLock(user, "key2")); err != nil {
		t.Fatal(err)
	}
	archive(t, pool, soon(), 2)
	if err := sender.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	archive(t, pool, soon(), 1)
	ledgertest.Check(t, pool)
}

// The database itself keeps an archived job's key and id, whichever statement inserts
// them: it adds nothing.
func TestArchivedKeysAreSkipped(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	rejected(t, pool, account, 1)
	archive(t, pool, soon(), 1)
	const insert = `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) `
	tests := []struct {
		name, sql string
		want      int64
	}{
		{"Key", insert + `SELECT gen_random_uuid(), account_id, user_id, 'deposit', 1, idempotency_key FROM archived_jobs ON CONFLICT DO NOTHING`, 0},
		{"Key/Plain", insert + `SELECT gen_random_uuid(), account_id, user_id, 'deposit', 1, idempotency_key FROM archived_jobs`, 0},
		{"ID", insert + `SELECT id, account_id, user_id, 'deposit', 1, 'other' FROM archived_jobs`, 0},
		{"AnotherUsersKey", insert + `SELECT gen_random_uuid(), account_id, gen_random_uuid(), 'deposit', 1, idempotency_key FROM archived_jobs`, 1},
		{"Neither", insert + `SELECT gen_random_uuid(), account_id, user_id, 'deposit', 1, 'fresh' FROM archived_jobs`, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if tag, err := pool.Exec(t.Context(), test.sql); err != nil || tag.RowsAffected() != test.want {
				t.Errorf("%d rows, %v; want %d", tag.RowsAffected(), err, test.want)
			}
		})
	}
}

// An accept looks for its key by index, however small the archive was when its
// connection made the plan.
func TestArchiveIsLookedIntoByIndex(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t), MaxConns: 1, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // nothing is kept
	const insertSQL = `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), id, user_id, 'deposit', 1, 'key' FROM accounts WHERE id = $1`
	if _, err := tx.Exec(t.Context(), insertSQL, account.ID); err != nil {
		t.Fatal(err)
	}
	const scansSQL = `SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'archived_jobs'`
	var readThrough, byIndex int
	if err := tx.QueryRow(t.Context(), scansSQL).Scan(&readThrough, &byIndex); err != nil {
		t.Fatal(err)
	}
	if readThrough != 0 || byIndex < 2 {
		t.Errorf("read it through %d times and looked by index %d times, want 0, and 2 for the key and the id", readThrough, byIndex)
	}
}

// A connection that dies anywhere in a move leaves every job where it was.
func TestArchiveCutOff(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, trigger string }{
		{"BeforeTheCopy", `CREATE TRIGGER cut BEFORE INSERT ON archived_jobs FOR EACH STATEMENT EXECUTE FUNCTION cut()`},
		{"BeforeTheDelete", `CREATE TRIGGER cut BEFORE DELETE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION cut()`},
		{"AfterTheDelete", `CREATE TRIGGER cut AFTER DELETE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION cut()`},
		{"AtTheCommit", `CREATE CONSTRAINT TRIGGER cut AFTER DELETE ON jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION cut()`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
			const jobs = 5
			rejected(t, pool, account, jobs)
			ledgertest.Exec(t, pool, `CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
				$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$`)
			ledgertest.Exec(t, pool, test.trigger)
			if moved, err := job.Archive(t.Context(), pool, soon(), func(int64) {}); err == nil || moved != 0 {
				t.Errorf("moved %d, %v over a dead connection", moved, err)
			}
			if live, archived := count(t, pool, "jobs"), count(t, pool, "archived_jobs"); live != jobs || archived != 0 {
				t.Errorf("%d jobs are live and %d archived, want %d and none", live, archived, jobs)
			}
			ledgertest.Check(t, pool)
			ledgertest.Exec(t, pool, `DROP FUNCTION cut CASCADE`)
			testenv.Eventually(t, "the dead connection to let go of the keys", func() bool { return count(t, pool, keyLocks) == 0 })
			archive(t, pool, soon(), jobs)
			ledgertest.Check(t, pool)
		})
	}
}

// keyLocks are those that are held in the database.
const keyLocks = `(SELECT FROM pg_locks WHERE locktype = 'advisory'
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) held`

// An interrupt ends it after the step in hand; the next run goes on.
func TestArchiveInterrupted(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	const step, jobs = 500, 1200
	rejected(t, pool, account, jobs)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var told []int64
	moved, err := job.Archive(ctx, pool, soon(), func(n int64) {
		told = append(told, n)
		interrupt()
	})
	if !errors.Is(err, context.Canceled) || moved != step || len(told) != 1 || told[0] != step {
		t.Errorf("moved %d, %v, told %v; want one step of %d", moved, err, told, step)
	}
	archive(t, pool, soon(), jobs-step)
	ledgertest.Check(t, pool)
}

// Reads of one job and the steps of a move go by index.
func TestArchivePlans(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	const jobs = 20_000
	rejected(t, pool, account, jobs)
	ledgertest.Exec(t, pool, `SELECT archive_jobs(array_agg(id)) FROM jobs WHERE position % 2 = 0`)
	ledgertest.Exec(t, pool, `VACUUM ANALYZE jobs, rejections, archived_jobs`)
	t.Run("move", func(t *testing.T) {
		// A connection of its own: the figures have what a session did and has not reported yet.
		conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context()) //nolint:errcheck // nothing is pending on it
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context()) //nolint:errcheck // nothing is kept
		const sql = `
			SELECT archive_jobs(ARRAY(SELECT id FROM jobs ORDER BY id LIMIT 3)), 0, 0 UNION ALL
			SELECT 0, seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'jobs'`
		var moved, readThrough, byIndex int
		rows, _ := tx.Query(t.Context(), sql) // ForEachRow returns its error
		var row [3]int
		if _, err := pgx.ForEachRow(rows, []any{&row[0], &row[1], &row[2]}, func() error {
			moved, readThrough, byIndex = moved+row[0], row[1], row[2]
			return nil
		}); err != nil || moved != 3 || readThrough != 0 || byIndex < 3 {
			t.Errorf("moved %d, read jobs through %d times and looked by index %d times, %v; want 3, never and 3", moved, readThrough, byIndex, err)
		}
	})
	for name, statement := range job.Statements(user, "key1") {
		t.Run(name, func(t *testing.T) {
			rows, err := pool.Query(t.Context(), "EXPLAIN "+statement.SQL, statement.Args...)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			checkPlan(t, plan)
		})
	}
}
