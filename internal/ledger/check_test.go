package ledger_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// What keeps Postgres from applying jobs is seen without a job: a right of the serving role or of the
// function's owner, a server that takes no writes, a missing function, a language that can't be
// loaded. The check says what is wrong.
func TestCheckApply(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	admin, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ledgertest.Exec(t, admin, `
		CREATE ROLE keeper; GRANT ALL ON ALL TABLES IN SCHEMA public TO keeper;
		ALTER FUNCTION apply_job OWNER TO keeper; ALTER FUNCTION leave_queue OWNER TO keeper;
		CREATE ROLE server LOGIN PASSWORD 'server'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO server;
		GRANT UPDATE (attempts) ON queue TO server; GRANT INSERT (account_id, position) ON failures TO server;
		GRANT EXECUTE ON FUNCTION apply_job TO server`)
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("server", "server")
	check := func() error {
		pool, err := pgxpool.New(t.Context(), u.String()) // new connections: some faults concern only these
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		return ledger.NewApplier(pool).CheckApply(t.Context())
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []struct{ name, from, to, want string }{
		{"OwnersInsert", `REVOKE INSERT ON transactions FROM keeper`, `GRANT INSERT ON transactions TO keeper`, "role keeper has no right INSERT on transactions"},
		{"OwnersDelete", `REVOKE DELETE ON queue FROM keeper`, `GRANT DELETE ON queue TO keeper`, "role keeper has no right DELETE on queue"},
		{"Attempts", `REVOKE UPDATE (attempts) ON queue FROM server`, `GRANT UPDATE (attempts) ON queue TO server`, "role server has no right UPDATE on queue"},
		{"Execute", `REVOKE EXECUTE ON FUNCTION apply_job FROM server`, `GRANT EXECUTE ON FUNCTION apply_job TO server`, "role server has no right EXECUTE on function apply_job"},
		{"NoFunction", `ALTER FUNCTION leave_queue RENAME TO gone`, `ALTER FUNCTION gone RENAME TO leave_queue`, "the function that needs DELETE on queue is missing"},
		{"NoTable", `ALTER TABLE rejections RENAME TO gone`, `ALTER TABLE gone RENAME TO rejections`, "rejections"},
		{"ReadOnly", `ALTER ROLE server SET default_transaction_read_only = on`, `ALTER ROLE server RESET default_transaction_read_only`, "25006"},
		{
			"NoLanguage", `UPDATE pg_proc SET probin = '$libdir/gone' WHERE proname = 'plpgsql_call_handler'`,
			`UPDATE pg_proc SET probin = '$libdir/plpgsql' WHERE proname = 'plpgsql_call_handler'`, "58P01",
		},
	} {
		t.Run(fault.name, func(t *testing.T) {
			ledgertest.Exec(t, admin, fault.from)
			if err := check(); err == nil || !strings.Contains(err.Error(), fault.want) {
				t.Errorf("%v, want %s", err, fault.want)
			}
			ledgertest.Exec(t, admin, fault.to)
			if err := check(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}
