package ledger_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/testenv"
)

// A worker's plans are made while the tables are small and kept when they have
// grown; they must be the right ones from the start: one step into the queue,
// nothing read through, nothing sorted.
func TestPlansOfASmallTableHold(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 1, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 0)
	for range 60 {
		ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	}
	ledgertest.Exec(t, pool, `ANALYZE`)
	ledgertest.Exec(t, pool, `SET plan_cache_mode = force_generic_plan`)
	id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
	for name, statement := range ledger.Statements {
		t.Run(name, func(t *testing.T) {
			conn, err := pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			if _, err := conn.Conn().Prepare(t.Context(), name, statement.SQL); err != nil {
				t.Fatal(err)
			}
			rows, err := conn.Query(t.Context(), "EXPLAIN EXECUTE "+name+"('"+id.String()+"'"+statement.More+")", pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			plan := strings.Join(lines, "\n")
			for _, bad := range []string{"Seq Scan", "Sort", "Bitmap", "Hash"} {
				if strings.Contains(plan, bad) {
					t.Errorf("the plan has a %s:\n%s", bad, plan)
				}
			}
			if name != "lock" && !strings.Contains(plan, "Index Scan using jobs_queued") {
				t.Errorf("the plan does not step into the queue:\n%s", plan)
			}
		})
	}
}
