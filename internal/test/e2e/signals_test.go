package e2e_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// signalFault is a fault that stops the work of the processes, and that they must report.
type signalFault struct {
	name     string
	from, to func(t *testing.T, s *system, admin *pgxpool.Pool)

	api, worker     string // the check that is down in each; empty for none
	apiIs, workerIs int    // what /readyz answers meanwhile
}

// execAll runs statements as the superuser.
func execAll(statements ...string) func(*testing.T, *system, *pgxpool.Pool) {
	return func(t *testing.T, _ *system, admin *pgxpool.Pool) {
		t.Helper()
		for _, statement := range statements {
			ledgertest.Exec(t, admin, statement)
		}
	}
}

// onRedis runs a command of Redis.
func onRedis(command ...any) func(*testing.T, *system, *pgxpool.Pool) {
	return func(t *testing.T, s *system, _ *pgxpool.Pool) {
		t.Helper()
		commandRedis(t, s, command...)
	}
}

// endSessions ends the sessions of the processes: some faults concern only new ones.
const endSessions = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'passbook_serving'`

// Processes with the roles of deploy/postgres/roles.sql that answer but can't work report that within
// seconds: on /readyz, as a metric, and in the log. They also report when they work again.
func TestSignals(t *testing.T) {
	t.Parallel()
	s, admin := newServedSystem(t, 1, 1)
	c := newClient(t, s)
	number := c.open(0).Number
	const ok, unready = http.StatusOK, http.StatusServiceUnavailable
	for _, f := range []signalFault{
		{
			name: "RedisFull", api: "redis", apiIs: ok, worker: "redis", workerIs: unready,
			from: onRedis("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction"), to: onRedis("CONFIG", "SET", "maxmemory", "0"),
		},
		{
			name: "RedisReadOnly", api: "redis", apiIs: ok, worker: "redis", workerIs: unready,
			from: onRedis("REPLICAOF", "127.0.0.1", "1"), to: onRedis("REPLICAOF", "NO", "ONE"),
		},
		{
			name: "PostgresReadOnly", api: "postgres", apiIs: unready, worker: "postgres", workerIs: unready,
			from: execAll(`ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`),
			to:   execAll(`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`),
		},
		{
			name: "NoExecute", apiIs: ok, worker: "applies", workerIs: unready,
			from: execAll(`REVOKE EXECUTE ON FUNCTION apply_job FROM passbook_serving`), to: execAll(`GRANT EXECUTE ON FUNCTION apply_job TO passbook_serving`),
		},
		{
			name: "NoAccepts", api: "accepts", apiIs: ok, workerIs: ok,
			from: execAll(`REVOKE INSERT (id) ON jobs FROM passbook_serving; REVOKE INSERT (account_id, user_id, type, amount, idempotency_key, description) ON jobs FROM passbook_serving`),
			to:   execAll(`GRANT INSERT (id, account_id, user_id, type, amount, idempotency_key, description) ON jobs TO passbook_serving`),
		},
		{
			name: "NoLanguage", api: "accepts", apiIs: ok, worker: "applies", workerIs: unready,
			from: execAll(`UPDATE pg_proc SET probin = '$libdir/gone' WHERE proname = 'plpgsql_call_handler'`, endSessions),
			to:   execAll(`UPDATE pg_proc SET probin = '$libdir/plpgsql' WHERE proname = 'plpgsql_call_handler'`),
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			api, worker := watch(s.apis[0]), watch(s.workers[0])
			f.from(t, s, admin)
			if f.api != "" {
				api.awaitDown(t, f.api, f.apiIs)
			}
			if f.worker != "" {
				worker.awaitDown(t, f.worker, f.workerIs)
			}
			for p, want := range map[*process]int{s.apis[0]: f.apiIs, s.workers[0]: f.workerIs} { // also the one without the fault
				if status, ready := get(t, p.operator()+"/readyz"); status != want {
					t.Errorf("%s answers %d %s, want %d", p.name, status, ready, want)
				}
			}
			f.to(t, s, admin)
			api.awaitUp(t)
			worker.awaitUp(t)
		})
	}
	t.Run("NoInsert", func(t *testing.T) { checkNoInsert(t, s, admin, c, number) })
	t.Run("Hanging", func(t *testing.T) { checkHanging(t, s) })
	s.drained()
	s.verify()
}

// checkNoInsert revokes a right that every apply needs from the role that owns apply_job. The log names
// the job that is accepted meanwhile. A worker applies it once roles.sql has granted the right again.
func checkNoInsert(t *testing.T, s *system, admin *pgxpool.Pool, c *client, number string) {
	t.Helper()
	worker := watch(s.workers[0])
	ledgertest.Exec(t, admin, `REVOKE INSERT ON transactions FROM passbook_owner`)
	status, answer, err := c.send(t.Context(), 0, jobRequest{number, "deposits", 1, "no-insert"})
	if err != nil || status != http.StatusAccepted {
		t.Fatalf("%d %s %v, want 202", status, answer, err)
	}
	worker.awaitDown(t, "applies", http.StatusServiceUnavailable)
	testenv.Eventually(t, "the error to be counted", func() bool {
		_, metrics := get(t, worker.operator()+"/metrics")
		return strings.Contains(metrics, `passbook_apply_errors_total{reason="privilege"}`) && !strings.Contains(metrics, `passbook_apply_errors_total{reason="privilege"} 0`)
	})
	var id, account string
	if err := admin.QueryRow(t.Context(), `SELECT job_id::text, account_id::text FROM queue`).Scan(&id, &account); err != nil {
		t.Fatal(err)
	}
	said := false
	for line := range strings.Lines(worker.log()) {
		said = said || strings.Contains(line, `"msg":"apply failed; it is tried again"`) && strings.Contains(line, id) &&
			strings.Contains(line, `"account_id":`+account) && strings.Contains(line, `"reason":"privilege","sqlstate":"42501"`)
	}
	if !said {
		t.Errorf("no line has the job %s, its account and the error:\n%s", id, worker.log())
	}
	grantRoles(t, admin) // as the run-book says
	s.drained()
	worker.awaitUp(t)
}

// checkHanging freezes Postgres and Redis. The operator's ports still answer, and say that both are down.
func checkHanging(t *testing.T, s *system) {
	t.Helper()
	api, worker := watch(s.apis[0]), watch(s.workers[0])
	thawRedis := testenv.Freeze(t, s.redis.PID())
	thawPostmaster := testenv.Freeze(t, s.postgres.PID()) // first, so that it makes no more
	thawPostgres := testenv.Freeze(t, childrenOf(t, s.postgres.PID())...)
	for _, p := range []*watchedProcess{api, worker} {
		for _, store := range []string{"postgres", "redis"} {
			p.awaitDown(t, store, http.StatusServiceUnavailable)
			testenv.Eventually(t, "the metrics to say so", func() bool {
				status, metrics := get(t, p.operator()+"/metrics")
				return status == http.StatusOK && strings.Contains(metrics, fmt.Sprintf("passbook_store_up{store=%q} 0", store))
			})
		}
	}
	thawPostgres()
	thawPostmaster()
	thawRedis()
	api.awaitUp(t)
	worker.awaitUp(t)
}

// watchedProcess is a process with a fault.
type watchedProcess struct {
	*process
	before int      // the length of its log before the fault
	down   []string // the checks that were down
}

func watch(p *process) *watchedProcess { return &watchedProcess{process: p, before: len(p.log())} }

// logs returns whether the process has written a message about a dependency since the fault began.
func (p *watchedProcess) logs(message, dependency string) bool {
	return strings.Contains(p.log()[p.before:], fmt.Sprintf(`"msg":%q,"dependency":%q`, message, dependency))
}

// awaitDown waits until the process says that the check is down, on /readyz, as a metric and in the log.
func (p *watchedProcess) awaitDown(t *testing.T, check string, want int) {
	t.Helper()
	testenv.Eventually(t, fmt.Sprintf("%s to answer %d, %q down", p.name, want, check), func() bool {
		status, ready := get(t, p.operator()+"/readyz")
		_, metrics := get(t, p.operator()+"/metrics")
		return status == want && strings.Contains(ready, fmt.Sprintf(`{"name":%q,"status":"down"`, check)) &&
			strings.Contains(metrics, fmt.Sprintf("passbook_check_up{check=%q} 0", check)) &&
			(p.logs("dependency down", check) || p.logs("dependency away", check))
	})
	p.down = append(p.down, check)
}

var checkDown = regexp.MustCompile(`passbook_check_up\{check="\w+"\} 0`)

// awaitUp waits until the process says that nothing which it depends on is down, on /readyz and as metrics,
// and that what was down is up, in the log.
func (p *watchedProcess) awaitUp(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, p.name+" to be ready", func() bool {
		status, ready := get(t, p.operator()+"/readyz")
		_, metrics := get(t, p.operator()+"/metrics")
		return status == http.StatusOK && !strings.Contains(ready, "down") && !checkDown.MatchString(metrics) &&
			!slices.ContainsFunc(p.down, func(check string) bool {
				return !p.logs("dependency up again", check) && !p.logs("dependency back", check)
			})
	})
}
