package job_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Running processes go on where an operator adds a column to jobs or archived_jobs: between the
// two changes, with the columns in a different order, and on connections with prepared statements.
func TestColumnAdded(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		changes []string
	}{
		{"JobsFirst", []string{`ALTER TABLE jobs ADD COLUMN x int DEFAULT 7`, `ALTER TABLE archived_jobs ADD COLUMN x int`}},
		{"ArchiveFirst", []string{`ALTER TABLE archived_jobs ADD COLUMN x text`, `ALTER TABLE jobs ADD COLUMN x text DEFAULT 'new'`}},
		{"InAnotherOrder", []string{
			`ALTER TABLE jobs ADD COLUMN x int, ADD COLUMN y text NOT NULL DEFAULT 'new'`,
			`ALTER TABLE archived_jobs ADD COLUMN y text, ADD COLUMN x int`,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t), MaxConns: 1, Serving: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			user := ledgertest.User(t, pool)
			a, _ := acceptor(t, pool, manyQueued)
			c := client{pool: pool, acceptor: a, user: user, account: ledgertest.Account(t, pool, user, 100)}
			c.visit(t, "before")
			operator, err := pgx.Connect(t.Context(), pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			defer operator.Close(t.Context()) //nolint:errcheck // nothing is pending on it
			for _, change := range test.changes {
				if _, err := operator.Exec(t.Context(), change); err != nil {
					t.Fatal(err)
				}
				c.visit(t, change)
			}
		})
	}
}

// client uses everything that reads the tables of jobs, or moves a row between them.
type client struct {
	pool     *pgxpool.Pool
	acceptor *job.Acceptor
	user     uuid.UUID
	account  ledger.Account
	requests []job.Request
	jobs     []job.Job
}

// visit accepts two jobs, applies and archives the first. Before and after each step it reads all
// jobs so far by their keys, by their ids and in every list.
func (c *client) visit(t *testing.T, when string) {
	t.Helper()
	for range 2 {
		req := deposit(c.user, c.account, fmt.Sprint("key", len(c.jobs)))
		accepted, _, err := c.acceptor.Accept(t.Context(), req)
		if err != nil {
			t.Fatalf("%s: accept: %v", when, err)
		}
		c.requests, c.jobs = append(c.requests, req), append(c.jobs, accepted)
	}
	c.read(t, when)
	if _, _, err := ledger.NewApplier(c.pool).Apply(t.Context(), c.jobs[len(c.jobs)-2].ID, len(c.jobs)); err != nil {
		t.Fatalf("%s: apply: %v", when, err)
	}
	c.read(t, when+", applied")
	if _, err := job.Archive(t.Context(), c.pool, soon(), func(int64) {}); err != nil {
		t.Errorf("%s: archive: %v", when, err)
	}
	if archived := count(t, c.pool, "archived_jobs"); archived != len(c.jobs)-1 {
		t.Errorf("%s: %d jobs are archived, want %d", when, archived, len(c.jobs)-1)
	}
	c.read(t, when+", archived")
	ledgertest.Check(t, c.pool)
}

func (c *client) read(t *testing.T, when string) {
	t.Helper()
	reader := job.NewReader(c.pool)
	for i, req := range c.requests {
		repeated, replayed, err := c.acceptor.Accept(t.Context(), req)
		if err != nil || !replayed || repeated.ID != c.jobs[i].ID {
			t.Errorf("%s: %s again: job %s, replayed %t, %v; want job %s", when, req.Key, repeated.ID, replayed, err, c.jobs[i].ID)
		}
		if found, err := reader.Job(t.Context(), c.user, c.jobs[i].ID); err != nil || found.Position != c.jobs[i].Position {
			t.Errorf("%s: read job %s: %+v, %v", when, c.jobs[i].ID, found, err)
		}
	}
	page := job.Page{Account: ledger.Owned{UserID: c.user, Number: c.account.Number}, Limit: 100}
	listed := map[job.Status]int{}
	for _, status := range append([]job.Status{""}, job.Statuses...) {
		page.Status = status
		for _, page.Ascending = range []bool{true, false} {
			jobs, err := reader.List(t.Context(), page)
			if err != nil {
				t.Errorf("%s: list %q, ascending %t: %v", when, status, page.Ascending, err)
			}
			listed[status] = len(jobs)
		}
	}
	if listed[""] != len(c.jobs) || listed[job.Succeeded]+listed[job.Queued] != len(c.jobs) {
		t.Errorf("%s: listed %v of %d jobs", when, listed, len(c.jobs))
	}
}

// A migration that adds a column to jobs must add it to what the statements name.
func TestColumnsAreNamed(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	const sql = `SELECT attname FROM pg_attribute WHERE attrelid = ANY ('{jobs,archived_jobs}'::regclass[]) AND attnum > 0 AND NOT attisdropped
		EXCEPT SELECT trim(regexp_split_to_table($1, ','), E' \n\t')`
	rows, _ := pool.Query(t.Context(), sql, job.Stored) // CollectRows returns its error
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(missing) > 0 {
		t.Errorf("jobs has %v, which no statement moves to the archive; %v", missing, err)
	}
	const bodySQL = `SELECT proname || ' lacks ' || attname FROM pg_attribute, pg_proc
		WHERE attrelid = 'archived_jobs'::regclass AND attnum > 0 AND NOT attisdropped
		AND (proname = 'archive_jobs' AND regexp_count(prosrc, '\m' || attname || '\M') < 2
			OR proname = 'refuse_unless_archived' AND attname <> 'id' AND NOT (prosrc ~ ('archived\.' || attname || '\M') AND prosrc ~ ('job\.' || attname || '\M')))`
	rows, _ = pool.Query(t.Context(), bodySQL) // CollectRows returns its error
	missing, err = pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(missing) > 0 {
		t.Errorf("%v: %q", err, missing)
	}
}
