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

// soon returns a time after all that a test has done: every finished job may be archived.
func soon() time.Time { return time.Now().Add(time.Minute) }

// archive archives the jobs that finished before a time, and checks their number.
func archive(t *testing.T, pool *pgxpool.Pool, before time.Time, want int64) {
	t.Helper()
	moved, err := job.Archive(t.Context(), pool, before, func(int64) {})
	if err != nil || moved != want {
		t.Fatalf("moved %d jobs, %v; want %d", moved, err, want)
	}
}

// count returns the number of a table's rows.
func count(t *testing.T, pool *pgxpool.Pool, table string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// inFull returns a value as JSON, with what its pointers point to.
func inFull(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What a client reads of a job stays the same when it is archived: by its key, by its id, in every
// page of every list, and in the history.
func TestArchive(t *testing.T) {
	t.Parallel()
	c := newArchiveClient(t)
	text := "rent"
	c.finish(t, c.accept(t, ledger.Deposit, 5, &text))
	c.finish(t, c.accept(t, ledger.Withdrawal, 1000, nil))
	failed := c.accept(t, ledger.Deposit, refusedAmount, nil)
	c.finish(t, failed)
	middle := c.accept(t, ledger.Withdrawal, 7, nil)
	c.finish(t, middle)
	var border time.Time
	if err := c.pool.QueryRow(t.Context(), `SELECT finished_at FROM job_states WHERE id = $1`, middle).Scan(&border); err != nil {
		t.Fatal(err)
	}
	c.finish(t, c.accept(t, ledger.Deposit, 8, &text))
	c.finish(t, c.accept(t, ledger.Withdrawal, 2000, &text))
	last := c.accept(t, ledger.Deposit, 9, nil)

	before := c.read(t)
	archive(t, c.pool, border, 2)
	c.check(t, "with the older half archived", 2, before)
	archive(t, c.pool, border, 0)
	archive(t, c.pool, soon(), 3)
	c.check(t, "with all archived that can be", 5, before)

	t.Run("LiveGoesOn", func(t *testing.T) {
		ledgertest.Exec(t, c.pool, `ALTER TABLE transactions DROP CONSTRAINT unlucky`)
		ledgertest.Replay(t, c.pool, failed)
		if applied, _, err := c.applier.Apply(t.Context(), last, 10); err != nil || len(applied) != 2 {
			t.Errorf("applied %+v, %v; want the replayed and the queued job", applied, err)
		}
		other := ledgertest.Account(t, c.pool, c.user, 0)
		if _, _, err := c.acceptor.Accept(t.Context(), deposit(c.user, other, "fresh")); err != nil {
			t.Error(err)
		}
		archive(t, c.pool, soon(), 2)
		ledgertest.Check(t, c.pool)
	})
}

// refusedAmount is the amount of a transaction that Postgres refuses.
const refusedAmount = 13

// archiveClient sends jobs to one account and reads all that a client can read of them.
type archiveClient struct {
	pool           *pgxpool.Pool
	acceptor       *job.Acceptor
	applier        *ledger.Applier
	user, stranger uuid.UUID
	account        ledger.Account
	requests       []job.Request
	jobs           []job.Job // by request
}

func newArchiveClient(t *testing.T) *archiveClient {
	t.Helper()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, fmt.Sprintf(`ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> %d)`, refusedAmount))
	a, _ := acceptor(t, pool, manyQueued)
	user, stranger := ledgertest.User(t, pool), ledgertest.User(t, pool)
	return &archiveClient{
		pool: pool, acceptor: a, applier: ledger.NewApplier(pool), user: user, stranger: stranger, account: ledgertest.Account(t, pool, user, 100),
	}
}

func (c *archiveClient) accept(t *testing.T, typ ledger.EntryType, amount int64, description *string) uuid.UUID {
	t.Helper()
	req := job.Request{
		UserID: c.user, Account: c.account.Number, Type: typ, Amount: amount, Description: description, Key: fmt.Sprint("key", len(c.requests)),
	}
	accepted, _, err := c.acceptor.Accept(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	c.requests, c.jobs = append(c.requests, req), append(c.jobs, accepted)
	return accepted.ID
}

// finish applies a job until it ends, also where it ends failed.
func (c *archiveClient) finish(t *testing.T, id uuid.UUID) {
	t.Helper()
	for range ledger.MaxAttempts {
		_, _, _ = c.applier.Apply(t.Context(), id, 1) // the error of a refused job
	}
}

// read returns all that a client can read, as lines.
func (c *archiveClient) read(t *testing.T) (lines []string) {
	t.Helper()
	for i, req := range c.requests {
		lines = append(lines, c.readJob(t, req, c.jobs[i].ID))
	}
	reader := job.NewReader(c.pool)
	for _, status := range append([]job.Status{""}, job.Statuses...) {
		for _, ascending := range []bool{true, false} {
			for limit := range len(c.jobs) + 1 {
				page := job.Page{Account: ledger.Owned{UserID: c.user, Number: c.account.Number}, Status: status, Ascending: ascending, Limit: limit + 1}
				lines = append(lines, fmt.Sprintf("%q ascending %t by %d: %s", status, ascending, page.Limit, inFull(t, walk(t, reader, page))))
			}
		}
	}
	return lines
}

// readJob returns what a client reads of a job, and checks that its key and its id are the user's.
func (c *archiveClient) readJob(t *testing.T, req job.Request, id uuid.UUID) string {
	t.Helper()
	reader := job.NewReader(c.pool)
	repeated, replayed, err := c.acceptor.Accept(t.Context(), req)
	if err != nil || !replayed || repeated.ID != id {
		t.Errorf("%s sent again: %s, replayed %t, %v; want job %s", req.Key, repeated.ID, replayed, err, id)
	}
	read, err := reader.Job(t.Context(), c.user, id)
	if err != nil || inFull(t, read) != inFull(t, repeated) {
		t.Errorf("%s reads as %s, %v; accept returned %s", req.Key, inFull(t, read), err, inFull(t, repeated))
	}
	req.Amount++
	if _, _, err := c.acceptor.Accept(t.Context(), req); !errors.Is(err, job.ErrKeyReused) {
		t.Errorf("%s for another amount: %v, want ErrKeyReused", req.Key, err)
	}
	opening := ledger.Opening{UserID: c.user, Currency: "KRW", Key: req.Key}
	if _, _, err := ledger.NewAccounts(c.pool).Open(t.Context(), opening); !errors.Is(err, ledger.ErrKeyReused) {
		t.Errorf("%s for an opening: %v, want ErrKeyReused", req.Key, err)
	}
	if _, err := reader.Job(t.Context(), c.stranger, id); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("%s read by a stranger: %v, want ErrNotFound", req.Key, err)
	}
	return inFull(t, read)
}

// check fails the test unless the client reads the lines it read before, and the jobs are archived.
func (c *archiveClient) check(t *testing.T, when string, archived int, before []string) {
	t.Helper()
	if n := count(t, c.pool, "archived_jobs"); n != archived {
		t.Errorf("%s: %d jobs are in the archive, want %d", when, n, archived)
	}
	for i, line := range c.read(t) {
		if line != before[i] {
			t.Errorf("%s: reads %s\nbefore: %s", when, line, before[i])
		}
	}
	if n := count(t, c.pool, `transactions WHERE job_id IS NOT NULL AND NOT EXISTS
		(SELECT FROM jobs WHERE id = job_id UNION ALL SELECT FROM archived_jobs WHERE id = job_id)`); n > 0 {
		t.Errorf("%s: %d transactions of no job", when, n)
	}
	if found := ledgertest.Check(t, c.pool); int(found.Jobs) != len(c.jobs) {
		t.Errorf("%s: %d jobs, want %d", when, found.Jobs, len(c.jobs))
	}
}

// walk reads all pages of a list.
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

// rejected inserts n rejected deposits, with the keys key1 to key n.
func rejected(t testing.TB, pool *pgxpool.Pool, account ledger.Account, n int) {
	t.Helper()
	ledgertest.Exec(t, pool, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, id, user_id, 'deposit', 100, 'key' || n
		FROM accounts, generate_series(1, $2) n WHERE id = $1`, account.ID, n)
	ledgertest.Exec(t, pool, `INSERT INTO rejections SELECT account_id, position, job_id, now(), 'balance_limit_exceeded' FROM queue`)
}

// A key that a client sends again while its job is archived makes no second job, in any process.
func TestArchiveWhileKeysAreSentAgain(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	const keys, clients = 4000, 32
	rejected(t, pool, account, keys)
	one, _ := acceptor(t, pool, manyQueued)
	two, _ := acceptor(t, pool, manyQueued)
	var group errgroup.Group
	var done atomic.Bool
	var replays atomic.Int64
	for client := range clients {
		a := []*job.Acceptor{one, two}[client%2]
		group.Go(func() error {
			for i := client; !done.Load(); i += 7 * clients {
				n := 1 + i%keys
				got, replayed, err := a.Accept(t.Context(), deposit(user, account, fmt.Sprint("key", n)))
				if want := fmt.Sprintf("00000000-0000-7000-8000-%012d", n); err == nil && (!replayed || got.ID.String() != want) {
					return fmt.Errorf("the key of job %s returns %s, replayed %t", want, got.ID, replayed)
				}
				switch {
				case err == nil:
					replays.Add(1)
				case !errors.Is(err, job.ErrUnavailable) && !errors.Is(err, job.ErrKeyBusy):
					return err
				}
			}
			return nil
		})
	}
	// A run leaves a job whose key a client is just sending to the next run.
	for remaining := int64(keys); remaining > 0; {
		moved, err := job.Archive(t.Context(), pool, soon(), func(int64) {})
		if err != nil {
			t.Error(err)
			break
		}
		if remaining -= moved; moved == 0 && count(t, pool, "archived_jobs") == keys {
			break
		}
	}
	done.Store(true)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if replays.Load() == 0 {
		t.Error("no key that was sent again returned its job")
	}
	if found := ledgertest.Check(t, pool); found.Jobs != keys {
		t.Errorf("%d jobs, want %d", found.Jobs, keys)
	}
	if n := count(t, pool, "archived_jobs"); n != keys {
		t.Errorf("%d jobs are in the archive, want %d", n, keys)
	}
}

// A key that a client sends again after its job is deleted, and before that is committed, is
// refused at once. After the commit the key returns the job.
func TestArchiveWhileAKeyIsSentAgain(t *testing.T) {
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
	testenv.Eventually(t, "the move to wait", func() bool {
		return count(t, pool, `pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	a, _ := acceptor(t, pool, manyQueued)
	if got, _, err := a.Accept(t.Context(), deposit(user, account, "key1")); !errors.Is(err, job.ErrKeyBusy) {
		t.Errorf("during the move: %+v, %v; want ErrKeyBusy", got, err)
	}
	release()
	if err := moving.Wait(); err != nil {
		t.Error(err)
	}
	got, replayed, err := a.Accept(t.Context(), deposit(user, account, "key1"))
	if want := "00000000-0000-7000-8000-000000000001"; err != nil || !replayed || got.ID.String() != want {
		t.Errorf("the key of job %s returns %s, replayed %t, %v", want, got.ID, replayed, err)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 1 {
		t.Errorf("%d jobs, want 1", found.Jobs)
	}
}

// The move does not wait for a client that is just sending a job's key: it leaves that job, and
// locks only the keys of the jobs that it moves.
func TestArchiveWaitsForNoKey(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	rejected(t, pool, ledgertest.Account(t, pool, user, 0), 3)
	sender, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it has ended by then
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

// The database itself inserts no job with the key or the id of an archived one, whichever
// statement tries to.
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

// An accept searches the archive for its key by index, also where the archive was empty when the
// connection made the plan.
func TestArchiveIsSearchedByIndex(t *testing.T) {
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
	var tableScans, indexScans int
	if err := tx.QueryRow(t.Context(), scansSQL).Scan(&tableScans, &indexScans); err != nil {
		t.Fatal(err)
	}
	if tableScans != 0 || indexScans < 2 {
		t.Errorf("%d table scans and %d index scans, want 0, and 2 for the key and the id", tableScans, indexScans)
	}
}

// A connection that is lost at any point of a move leaves every job where it was.
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
			testenv.Eventually(t, "the dead connection to release the keys", func() bool { return count(t, pool, keyLocks) == 0 })
			archive(t, pool, soon(), jobs)
			ledgertest.Check(t, pool)
		})
	}
}

// keyLocks selects the locks of keys that sessions hold in the database.
const keyLocks = `(SELECT FROM pg_locks WHERE locktype = 'advisory'
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) held`

// An interrupt ends the move after its current step; the next run continues.
func TestArchiveInterrupted(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	const step, jobs = 500, 1200
	rejected(t, pool, account, jobs)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var steps []int64
	moved, err := job.Archive(ctx, pool, soon(), func(n int64) {
		steps = append(steps, n)
		interrupt()
	})
	if !errors.Is(err, context.Canceled) || moved != step || len(steps) != 1 || steps[0] != step {
		t.Errorf("moved %d, %v, in steps of %v; want one of %d", moved, err, steps, step)
	}
	archive(t, pool, soon(), jobs-step)
	ledgertest.Check(t, pool)
}

// Postgres reads single jobs, and the jobs of a move, by index.
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
		// A connection of its own: the statistics include what its session did and has not reported.
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
		var moved, tableScans, indexScans int
		rows, _ := tx.Query(t.Context(), sql) // ForEachRow returns its error
		var row [3]int
		if _, err := pgx.ForEachRow(rows, []any{&row[0], &row[1], &row[2]}, func() error {
			moved, tableScans, indexScans = moved+row[0], row[1], row[2]
			return nil
		}); err != nil || moved != 3 || tableScans != 0 || indexScans < 3 {
			t.Errorf("moved %d with %d table scans and %d index scans, %v; want 3, 0 and at least 3", moved, tableScans, indexScans, err)
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
