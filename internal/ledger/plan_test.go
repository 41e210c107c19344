package ledger_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/testenv"
)

// A worker's plans are made while the tables are new or small, and kept when they have
// grown; they must be the right ones from the start: one step into the queue, nothing
// read through, nothing sorted.
func TestPlansOfASmallTableHold(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 1, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	t.Run("New", func(t *testing.T) { checkPlans(t, pool) })
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	for range 60 {
		ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	}
	ledgertest.Exec(t, pool, `ANALYZE`)
	t.Run("Small", func(t *testing.T) { checkPlans(t, pool) })
}

func checkPlans(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for name, statement := range ledger.Statements {
		t.Run(name, func(t *testing.T) {
			conn, err := pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			prepared := strings.ReplaceAll(t.Name(), "/", "_")
			if _, err := conn.Conn().Prepare(t.Context(), prepared, statement.SQL); err != nil {
				t.Fatal(err)
			}
			explain := `EXPLAIN EXECUTE "` + prepared + `"(` + fmt.Sprintf(statement.Args, uuid.New()) + `)`
			rows, err := conn.Query(t.Context(), explain, pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			plan := strings.Join(lines, "\n")
			for _, bad := range []string{"Seq Scan", "Sort", "Bitmap", "Hash", "Merge"} {
				if strings.Contains(plan, bad) {
					t.Errorf("the plan has a %s:\n%s", bad, plan)
				}
			}
			steps := 0
			for i, line := range lines {
				if !strings.Contains(line, "using jobs_queued") {
					continue
				}
				steps++
				if i+1 == len(lines) || !strings.Contains(lines[i+1], "Index Cond: ((account_id = ") {
					t.Errorf("the plan walks through the whole queue:\n%s", plan)
				}
			}
			if name != "lock" && steps == 0 {
				t.Errorf("the plan does not step into the queue:\n%s", plan)
			}
		})
	}
}
