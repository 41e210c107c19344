package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// serverConns is how many connections to the server all processes share, each of which has up to 16
// connections to the pooler.
const serverConns = 6

// Behind PgBouncer in transaction mode every job finishes once and in order, whatever dies: a worker, an
// API, PgBouncer, and Postgres, whose database commits without a flush by default. Operators' commands go
// through it too, but for a migration.
func TestPooler(t *testing.T) {
	t.Parallel()
	s, admin := servedBy(t, testenv.EmptyPostgresServer(t))
	ledgertest.Exec(t, admin, `ALTER DATABASE postgres SET synchronous_commit = off`)
	bouncer := testenv.PgBouncer(t, local.PgBouncerConfig{
		Server: s.postgres, ServerConns: serverConns, Users: map[string]string{"passbook_serving": "serving", "passbook_operator": "operator", "passbook_owner": "owner"},
		Settings: documentedSettings(t),
	})
	serving := "DATABASE_URL=" + testenv.As(t, bouncer.URL(), "passbook_serving", "serving")
	operator := "DATABASE_URL=" + testenv.As(t, bouncer.URL(), "passbook_operator", "operator")
	s.reach = func(string, int) []string { return []string{serving} }
	for _, name := range []string{"api", "worker"} {
		refused := begin(t, name, append(s.env(), serving))
		if err := refused.wait(); err == nil || !strings.Contains(refused.log(), "ALTER ROLE passbook_serving SET statement_timeout = '3000'") {
			t.Errorf("%s, whose role has not the settings, ended with %v\n%s", name, err, refused.log())
		}
	}
	settings, err := os.ReadFile(filepath.Join(repository, "deploy", "postgres", "pooler.sql"))
	if err != nil {
		t.Fatal(err)
	}
	ledgertest.Exec(t, admin, string(settings))
	testenv.Console(t, bouncer, "RECONNECT")
	s.start(2, 2)
	c := newSignedUpClient(t, s)
	var accepted atomic.Int64
	c.watch = func(saw seen) {
		if saw.status == http.StatusAccepted {
			accepted.Add(1)
		}
	}
	flow := func() {
		t.Helper()
		until := accepted.Load() + afterFault
		testenv.Eventually(t, "jobs to be accepted", func() bool { return accepted.Load() >= until })
	}
	clients := startLoad(c, clusterClients)
	flow()
	for _, inject := range []func(){
		func() { s.crashWorker(0) },
		func() { s.crashAPI(1) },
		func() { crashPooler(t, bouncer) },
		func() { crashPostgres(t, s) },
	} {
		inject()
		flow()
	}
	clients.stop()
	checkConnections(t, s)
	operateThroughPooler(t, c, operator)
	migrate := begin(t, "api", []string{"DATABASE_URL=" + testenv.As(t, bouncer.URL(), "passbook_owner", "owner")}, "migrate")
	if err := migrate.wait(); err == nil || !strings.Contains(migrate.log(), "name the server itself") {
		t.Errorf("api migrate ended with %v\n%s", err, migrate.log())
	}
	both := append(s.env(), serving, "READ_DATABASE_URL="+s.postgres.URL())
	if replica := begin(t, "api", both); replica.wait() == nil || !strings.Contains(replica.log(), "READ_DATABASE_URL") {
		t.Errorf("an API with a replica beside the pooler:\n%s", replica.log())
	}
}

// documentedSettings are PgBouncer's settings in docs/operations.md, without the number of connections.
func documentedSettings(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "\n[pgbouncer]\n")
	block, _, _ = strings.Cut(block, "```")
	settings := map[string]string{}
	for line := range strings.Lines(block) {
		if name, value, isSetting := strings.Cut(strings.TrimSpace(line), " = "); isSetting {
			settings[name] = value
		}
	}
	delete(settings, "default_pool_size")
	if settings["pool_mode"] == "" {
		t.Fatal("found no settings")
	}
	return settings
}

// crashPooler kills PgBouncer and starts it again.
func crashPooler(t *testing.T, bouncer *local.PgBouncer) {
	t.Helper()
	if err := bouncer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := bouncer.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// checkConnections checks that the processes share the connections of the pooler.
func checkConnections(t *testing.T, s *system) {
	t.Helper()
	const sql = `SELECT count(*) FROM pg_stat_activity WHERE usename = 'passbook_serving' AND application_name LIKE 'passbook-%'`
	var n int
	if err := s.pool.QueryRow(t.Context(), sql).Scan(&n); err != nil || n == 0 || n > serverConns {
		t.Errorf("%d connections to the server, %v; want some, and %d at most", n, err, serverConns)
	}
}

// operateThroughPooler runs the commands of an operator.
func operateThroughPooler(t *testing.T, c *client, databaseURL string) {
	t.Helper()
	number := c.open(0).Number
	for _, test := range []struct {
		program string
		args    []string
		want    string
	}{
		{"worker", []string{"verify"}, "0 mismatches"},
		{"worker", []string{"archive", "--before", "2020-01-01"}, "0 jobs archived"},
		{"worker", []string{"jobs", "failed"}, ""},
		{"worker", []string{"accounts", "freeze", number, "--reason", "a test"}, ""},
		{"worker", []string{"accounts", "show", number}, "frozen"},
		{"api", []string{"migrate", "--status"}, "\n0 of "},
	} {
		p := begin(t, test.program, append(c.system.env(), databaseURL), test.args...)
		if err := p.wait(); err != nil || !strings.Contains(p.log(), test.want) {
			t.Errorf("%s %q ended with %v\n%s", test.program, test.args, err, p.log())
		}
	}
}
