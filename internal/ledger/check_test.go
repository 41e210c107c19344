package ledger_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

// CheckApply detects, without any job, that Postgres can't apply jobs: a missing right of the serving
// role or of the function's owner, a server that takes no writes, a missing function, a language that
// can't be loaded. It says which.
func TestCheckApply(t *testing.T) {
	t.Parallel()
	ledgertest.FindsFaults(t, `
		ALTER FUNCTION apply_job OWNER TO keeper; ALTER FUNCTION leave_queue OWNER TO keeper;
		GRANT UPDATE (attempts) ON queue TO server; GRANT INSERT (account_id, position) ON failures TO server;
		GRANT EXECUTE ON FUNCTION apply_job TO server`,
		func(ctx context.Context, pool *pgxpool.Pool) error { return ledger.NewApplier(pool).CheckApply(ctx) },
		[]ledgertest.Fault{
			{
				Name: "OwnersInsert", Want: "role keeper has no right INSERT on transactions",
				Cause: `REVOKE INSERT ON transactions FROM keeper`,
				Fix:   `GRANT INSERT ON transactions TO keeper`,
			},
			{
				Name: "OwnersDelete", Want: "role keeper has no right DELETE on queue",
				Cause: `REVOKE DELETE ON queue FROM keeper`,
				Fix:   `GRANT DELETE ON queue TO keeper`,
			},
			{
				Name: "Attempts", Want: "role server has no right UPDATE on queue",
				Cause: `REVOKE UPDATE (attempts) ON queue FROM server`,
				Fix:   `GRANT UPDATE (attempts) ON queue TO server`,
			},
			{
				Name: "Execute", Want: "role server has no right EXECUTE on function apply_job",
				Cause: `REVOKE EXECUTE ON FUNCTION apply_job FROM server`,
				Fix:   `GRANT EXECUTE ON FUNCTION apply_job TO server`,
			},
			{
				Name: "NoFunction", Want: "the function that needs DELETE on queue is missing",
				Cause: `ALTER FUNCTION leave_queue RENAME TO gone`,
				Fix:   `ALTER FUNCTION gone RENAME TO leave_queue`,
			},
			{
				Name: "NoTable", Want: "rejections",
				Cause: `ALTER TABLE rejections RENAME TO gone`,
				Fix:   `ALTER TABLE gone RENAME TO rejections`,
			},
			{
				Name: "ReadOnly", Want: "25006",
				Cause: `ALTER ROLE server SET default_transaction_read_only = on`,
				Fix:   `ALTER ROLE server RESET default_transaction_read_only`,
			},
		},
	)
}
