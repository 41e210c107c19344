package ledger_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Postgres makes a worker's plans while the tables are new or small, and keeps them when the
// tables have grown. So the first plans must search by index: no table scan and no sort.
func TestPlansOfASmallTableHold(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 1, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	first := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), first, 1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	}
	t.Run("New", func(t *testing.T) { checkPlans(t, url) })
	for range 60 {
		ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	}
	ledgertest.Exec(t, pool, `ANALYZE`)
	t.Run("Small", func(t *testing.T) { checkPlans(t, url) })
}

// Also a slice of a verification looks up each row by an index, however large the tables become.
func TestPlansOfWalks(t *testing.T) {
	t.Parallel()
	pool, plans := explaining(t, testenv.Postgres(t))
	for table, walk := range ledger.Walks() {
		t.Run(table, func(t *testing.T) {
			*plans = nil
			if _, err := pool.Exec(t.Context(), walk.SQL, walk.Args...); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), `SELECT`); err != nil { // ends the statement before, whose plan Postgres then sends
				t.Fatal(err)
			}
			if len(*plans) == 0 {
				t.Fatal("Postgres sent no plan")
			}
			plan := strings.ReplaceAll(strings.Join(*plans, "\n"), "Seq Scan on job_positions", "") // a sequence is one row
			checkIndexed(t, plan)
			if table != "jobs" && table != "archived_jobs" {
				return
			}
			for _, index := range []string{"failures_pkey on", "queue_pkey on", "rejections_pkey on", "archived_jobs_rejected on", "transactions_jobs on"} {
				if !strings.Contains(plan, "using "+index) {
					t.Errorf("the plan does not use %s:\n%s", index, plan)
				}
			}
		})
	}
}

// checkPlans runs each statement for the newest queued job, or a job that is done, on a connection
// of its own, and rolls it back.
func checkPlans(t *testing.T, url string) {
	t.Helper()
	for name, statement := range ledger.Statements {
		t.Run(name, func(t *testing.T) {
			pool, plans := explaining(t, url)
			var id uuid.UUID
			if err := pool.QueryRow(t.Context(), `SELECT id FROM job_states WHERE (status <> 'queued') = $1 ORDER BY position DESC LIMIT 1`, statement.Done).Scan(&id); err != nil {
				t.Fatal(err)
			}
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context()) //nolint:errcheck // nothing is to be kept
			*plans = nil
			if _, err := tx.Exec(t.Context(), statement.SQL, append([]any{id}, statement.Args...)...); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), `SELECT`); err != nil { // ends the statement before, whose plan Postgres then sends
				t.Fatal(err)
			}
			if len(*plans) == 0 {
				t.Fatal("Postgres sent no plan")
			}
			checkPlan(t, strings.Join(*plans, "\n"), statement.Steps)
		})
	}
}

// explaining opens a worker's pool to which Postgres sends each plan, also those in functions.
func explaining(t *testing.T, url string) (pool *pgxpool.Pool, plans *[]string) {
	t.Helper()
	worker, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 1, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	cfg := worker.Config()
	plans = new([]string)
	cfg.ConnConfig.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { *plans = append(*plans, notice.Message) }
	secure := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if err := secure(ctx, conn); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, `LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0;
			SET auto_explain.log_nested_statements = on; SET auto_explain.log_level = notice`)
		return err
	}
	pool, err = pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, plans
}

func checkIndexed(t *testing.T, plan string) {
	t.Helper()
	for _, bad := range []string{"Seq Scan", "Sort", "Bitmap", "Hash", "Merge"} {
		if strings.Contains(plan, bad) {
			t.Errorf("the plan has a %s:\n%s", bad, plan)
		}
	}
}

func checkPlan(t *testing.T, plan string, wantSteps int) {
	t.Helper()
	checkIndexed(t, plan)
	steps := 0
	lines := strings.Split(plan, "\n")
	for i, line := range lines {
		if !strings.Contains(line, "using queue_pkey") {
			continue
		}
		steps++
		if i+1 == len(lines) || !strings.Contains(lines[i+1], "Index Cond: ((account_id = ") {
			t.Errorf("the plan walks through the whole queue:\n%s", plan)
		}
	}
	if steps != wantSteps {
		t.Errorf("%d steps into the queue, want %d:\n%s", steps, wantSteps, plan)
	}
}
