package job_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestList(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account, other := ledgertest.Account(t, pool, user, 100), ledgertest.Account(t, pool, user, 100)
	ledgertest.Job(t, pool, other, ledger.Deposit, 1)
	byStatus := map[job.Status][]uuid.UUID{}
	for i := range 10 {
		typ, status, amount := ledger.Deposit, job.Succeeded, int64(1)
		if i%3 == 1 {
			typ, status, amount = ledger.Withdrawal, job.Rejected, 1000
		}
		id := ledgertest.Job(t, pool, account, typ, amount)
		if i < 8 {
			if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err != nil {
				t.Fatal(err)
			}
		} else {
			status = job.Queued
		}
		byStatus[status] = append(byStatus[status], id)
		byStatus[""] = append(byStatus[""], id)
	}
	for _, status := range append([]job.Status{""}, job.Statuses...) {
		for _, ascending := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/ascending=%t", status, ascending), func(t *testing.T) {
				want := slices.Clone(byStatus[status])
				if !ascending {
					slices.Reverse(want)
				}
				var got []uuid.UUID
				page := job.Page{Account: ledger.Owned{UserID: user, Number: account.Number}, Status: status, Ascending: ascending, Limit: 3}
				for {
					jobs, err := job.NewReader(pool).List(t.Context(), page)
					if err != nil {
						t.Fatal(err)
					}
					for _, j := range jobs {
						got = append(got, j.ID)
						if status != "" && j.Status != status {
							t.Errorf("job %s is %s", j.ID, j.Status)
						}
					}
					if len(jobs) < page.Limit {
						break
					}
					page.After = jobs[len(jobs)-1].Position
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}

// Every list of jobs reads an index in its order, without a sort or a table scan.
func TestListPlans(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 100)
	for range 20 {
		ledgertest.Account(t, pool, user, 0)
	}
	ledgertest.Exec(t, pool, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT gen_random_uuid(), account.id, account.user_id, 'deposit', 1, account.id || '/' || n
		FROM generate_series(1, 2000) n, accounts account`)
	ledgertest.Exec(t, pool, `INSERT INTO rejections SELECT account_id, position, job_id, now(), 'x' FROM queue WHERE position % 5 = 0`)
	ledgertest.Exec(t, pool, `ALTER TABLE failures DISABLE TRIGGER failures_stamp`) // it would write each account's row hundreds of times
	ledgertest.Exec(t, pool, `INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'x' FROM queue WHERE position % 5 = 1`)
	ledgertest.Exec(t, pool, `
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at)
		SELECT account_id, 1 + position, 'deposit', 1, 1000, job_id, position, now() + position * interval '1 s' FROM queue WHERE position % 5 > 2`)
	ledgertest.Exec(t, pool, `SELECT archive_jobs(array_agg(id)) FROM job_states WHERE status IN ('succeeded', 'rejected') AND position % 2 = 0`)
	ledgertest.Exec(t, pool, `VACUUM ANALYZE jobs, queue, transactions, rejections, failures, archived_jobs`)
	ledgertest.Exec(t, pool, `VACUUM ANALYZE accounts`)
	for name, sql := range job.ListQueries() {
		t.Run(name, func(t *testing.T) {
			rows, err := pool.Query(t.Context(), "EXPLAIN "+sql, user, account.Number, int64(10000), 21)
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

func checkPlan(t *testing.T, plan []string) {
	t.Helper()
	text := strings.Join(plan, "\n")
	for _, bad := range []string{
		"Sort  (", "Bitmap", "Seq Scan on jobs", "Seq Scan on queue", "Seq Scan on transactions", "Seq Scan on rejections",
		"Seq Scan on failures", "Seq Scan on archived_jobs",
	} {
		if strings.Contains(text, bad) {
			t.Errorf("the plan has a %s:\n%s", bad, text)
		}
	}
	if !strings.Contains(text, "Index Scan") {
		t.Errorf("the plan has no index scan:\n%s", text)
	}
}
