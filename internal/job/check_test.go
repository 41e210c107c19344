package job_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// What keeps Postgres from accepting jobs is seen without a request, and the check says what is wrong.
func TestCheckAccept(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	admin, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ledgertest.Exec(t, admin, `
		CREATE ROLE keeper; GRANT ALL ON ALL TABLES IN SCHEMA public TO keeper; ALTER FUNCTION enter_queue OWNER TO keeper;
		CREATE ROLE server LOGIN PASSWORD 'server'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO server;
		GRANT INSERT (id, account_id) ON jobs TO server`)
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
		return job.CheckAccept(t.Context(), pool)
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []struct{ name, from, to, want string }{
		{"Insert", `REVOKE INSERT (id, account_id) ON jobs FROM server`, `GRANT INSERT (id, account_id) ON jobs TO server`, "role server has no right INSERT on jobs"},
		{"OwnersInsert", `REVOKE INSERT ON queue FROM keeper`, `GRANT INSERT ON queue TO keeper`, "role keeper has no right INSERT on queue"},
		{"Execute", `REVOKE EXECUTE ON FUNCTION accept_jobs FROM PUBLIC`, `GRANT EXECUTE ON FUNCTION accept_jobs TO PUBLIC`, "role server has no right EXECUTE on function accept_jobs"},
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
