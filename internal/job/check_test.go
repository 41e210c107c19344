package job_test

import (
	"testing"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

// CheckAccept detects, without any request, that Postgres can't accept jobs, and says why.
func TestCheckAccept(t *testing.T) {
	t.Parallel()
	ledgertest.FindsFaults(
		t, `ALTER FUNCTION enter_queue OWNER TO keeper; GRANT INSERT (id, account_id) ON jobs TO server`, job.CheckAccept,
		[]ledgertest.Fault{
			{
				Name: "Insert", Want: "role server has no right INSERT on jobs",
				Cause: `REVOKE INSERT (id, account_id) ON jobs FROM server`,
				Fix:   `GRANT INSERT (id, account_id) ON jobs TO server`,
			},
			{
				Name: "OwnersInsert", Want: "role keeper has no right INSERT on queue",
				Cause: `REVOKE INSERT ON queue FROM keeper`,
				Fix:   `GRANT INSERT ON queue TO keeper`,
			},
			{
				Name: "Execute", Want: "role server has no right EXECUTE on function accept_jobs",
				Cause: `REVOKE EXECUTE ON FUNCTION accept_jobs FROM PUBLIC`,
				Fix:   `GRANT EXECUTE ON FUNCTION accept_jobs TO PUBLIC`,
			},
		},
	)
}
