package job_test

import (
	"encoding/json"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// While a session holds a snapshot, the queue's index keeps an entry of each job that finished
// since. The sweep's statements do not read them, in many accounts or in one; a full scan does.
func TestBacklogUnderASnapshot(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t), MaxConns: 2, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	const accounts, each = 50, 100
	ledgertest.Exec(t, pool, `
		INSERT INTO accounts (user_id, number, currency, last_at, created_at)
		SELECT $1, (100000000000 + n)::text, 'KRW', now(), now() FROM generate_series(1, $2) n`, ledgertest.User(t, pool), accounts)
	snapshot, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Rollback(t.Context()) //nolint:errcheck // it only reads
	if _, err := snapshot.Exec(t.Context(), `SELECT FROM jobs`); err != nil {
		t.Fatal(err)
	}
	accept := func(condition string, jobs int) {
		ledgertest.Exec(t, pool, `
			INSERT INTO jobs (id, user_id, account_id, type, amount, idempotency_key)
			SELECT gen_random_uuid(), user_id, id, 'deposit', 1, gen_random_uuid()::text
			FROM accounts, generate_series(1, $1) WHERE `+condition, jobs)
	}
	accept(`true`, each)
	accept(`number = '100000000050'`, each*accounts) // the hot account
	ledgertest.Exec(t, pool, rejectSQL)
	backlog := job.NewBacklog(pool)
	finished, err := backlog.Newest(t.Context())
	if err != nil || finished != 2*accounts*each {
		t.Fatalf("the newest position is %d, %v, want %d", finished, err, 2*accounts*each)
	}
	accept(`number IN ('100000000010', '100000000050')`, 2)

	oldest, err := backlog.OldestQueued(t.Context(), 0, finished, 10)
	if err != nil || len(oldest) != 2 {
		t.Fatalf("%d oldest queued jobs, %v, want 2", len(oldest), err)
	}
	next, err := backlog.NextOldestQueued(t.Context(), oldest)
	if err != nil || len(next) != 2 || next[0].JobID != oldest[0].JobID || next[1].JobID != oldest[1].JobID {
		t.Errorf("the oldest queued jobs are now %v, %v, want %v", next, err, oldest)
	}
	ledgertest.Exec(t, pool, rejectSQL+` WHERE job_id = $1`, oldest[0].JobID)
	if next, err = backlog.NextOldestQueued(t.Context(), oldest); err != nil || len(next) != 2 || next[0].Position <= oldest[0].Position {
		t.Errorf("after the first is finished the oldest queued jobs are %v, %v", next, err)
	}
	for name, statement := range job.SweepStatements(oldest, finished) {
		// A page of the index holds some 200 entries, so the bound allows a few pages for each
		// account; each job that is read costs a page more.
		if pages := pagesRead(t, pool, statement); pages > each*accounts/20 {
			t.Errorf("%s reads %d pages, for %d finished jobs", name, pages, finished)
		}
	}
}

const rejectSQL = `INSERT INTO rejections SELECT account_id, position, job_id, clock_timestamp(), 'insufficient_funds' FROM queue`

func pagesRead(t *testing.T, pool *pgxpool.Pool, statement job.Statement) int {
	t.Helper()
	var text []byte
	if err := pool.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+statement.SQL, statement.Args...).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var explained []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal(text, &explained); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pages: %.60q", explained[0].Plan.Hit+explained[0].Plan.Read, statement.SQL)
	return explained[0].Plan.Hit + explained[0].Plan.Read
}

// Page by page, a scan sees every account that has queued jobs, whatever plan Postgres chooses.
func TestBacklogPagesSeeEveryAccount(t *testing.T) {
	t.Parallel()
	const accounts, page = 3000, 1000
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	ledgertest.Exec(t, pool, `INSERT INTO accounts (user_id, number, currency, last_at, created_at)
		SELECT $1, (100000000000 + n)::text, 'KRW', now(), now() FROM generate_series(1, $2) n`, user, accounts)
	ledgertest.Exec(t, pool, `INSERT INTO jobs (id, user_id, account_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), user_id, id, 'deposit', 1, gen_random_uuid()::text FROM (SELECT * FROM accounts ORDER BY random()) account`)
	ledgertest.Exec(t, pool, `ANALYZE jobs, queue`)
	seen := map[int64]bool{}
	for after, n := int64(0), page; n == page; {
		oldest, err := job.NewBacklog(pool).OldestQueued(t.Context(), after, 0, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range oldest {
			if one.AccountID <= after {
				t.Fatalf("account %d comes after account %d", one.AccountID, after)
			}
			seen[one.AccountID], after = true, one.AccountID
		}
		n = len(oldest)
	}
	if len(seen) != accounts {
		t.Errorf("the pages show %d accounts, want %d", len(seen), accounts)
	}
}
