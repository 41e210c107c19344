package e2e_test

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A process that starts before its Postgres is alive but not ready: /readyz says what it waits for.
// It becomes ready once Postgres runs.
func TestStart_OperatorsPortIsOpen(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	env := s.env()
	if err := s.postgres.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	processes := []*process{begin(t, "api", env), begin(t, "worker", env)}
	for _, p := range processes {
		testenv.Eventually(t, "the operator's port of "+p.name+" is open", func() bool { return p.operator() != "" })
		if status, body := get(t, p.operator()+"/livez"); status != http.StatusOK {
			t.Errorf("%s while it waits: /livez %d %s", p.name, status, body)
		}
		const waits = `{"name":"postgres","status":"down","required":true}`
		if status, body := get(t, p.operator()+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, waits) {
			t.Errorf("%s while it waits: /readyz %d %s", p.name, status, body)
		}
		if status, body := get(t, p.operator()+"/metrics"); status != http.StatusOK || !strings.Contains(body, "passbook_build_info") {
			t.Errorf("%s while it waits: /metrics %d", p.name, status)
		}
		if err := healthcheck(t, p); err == nil {
			t.Errorf("%s while it waits: healthcheck exits 0", p.name)
		}
		if p.isReady() {
			t.Errorf("%s says that it is ready, without Postgres", p.name)
		}
	}
	stopped := begin(t, "worker", env)
	testenv.Eventually(t, "the operator's port of another worker is open", func() bool { return stopped.operator() != "" })
	stopped.stop() // while it waits: that is no failure
	if log := stopped.log(); !strings.Contains(log, "stopped before it was ready") || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("a worker that was told to stop while it waited has the log:\n%s", log)
	}
	if err := s.postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		p.awaitReady()
		if status, body := get(t, p.operator()+"/readyz"); status != http.StatusOK {
			t.Errorf("%s: /readyz %d %s", p.name, status, body)
		}
		if err := healthcheck(t, p); err != nil {
			t.Errorf("%s: healthcheck: %v", p.name, err)
		}
		p.stop()
	}
}

// healthcheck runs a program's own health check with the process's port, as on all interfaces.
func healthcheck(t *testing.T, of *process) error {
	t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(of.operator(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return begin(t, of.name, []string{"OPS_ADDR=:" + port}, "healthcheck").wait()
}
