//go:build pooler

package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/postgres/postgrestest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// An answer never changes behind PgBouncer either, which keeps its clients' connections open over a crash
// of Postgres.
func TestPromises_Pooler(t *testing.T) {
	t.Parallel()
	s := newFragileSystem(t)
	databaseURL := "DATABASE_URL=" + postgrestest.Pooler(t, s.postgres, serverConns).URL()
	s.reach = func(name string, n int) []string { return append(promisesEnv(name, n), databaseURL) }
	s.start(2, 2)
	crashAgainAndAgain(t, s)
}

// Ten APIs and ten workers, each of which may have 16 connections, share a Postgres that takes 100. Under
// load each API accepts what it is sent. Without load the processes give connections back.
func TestTwentyProcesses(t *testing.T) {
	t.Parallel()
	const processes, clients, accepts, rounds = 10, 20, 500, 5
	s := &system{t: t, redis: testenv.RedisServer(t), postgres: testenv.PostgresServerWith(t, map[string]string{"max_connections": "100"})}
	s.databaseURL = s.postgres.URL() + "&pool_max_conn_idle_time=3s"
	s.start(processes, processes)
	c := newSignedUpClient(t, s)
	w := new(responseCheck)
	c.watch = w.see
	load := startFullLoad(c, clients)
	number := c.open(0).Number
	for round := range rounds {
		w.awaitAccepted(t, accepts)
		for n := range processes {
			status, answer, err := c.request(t.Context(), s.api(n), http.MethodPost,
				"/v1/accounts/"+number+"/deposits", fmt.Sprint(round, "-", n), map[string]any{"amount": 1})
			if err != nil || status != http.StatusAccepted {
				t.Errorf("round %d, API %d: %d %s %v", round, n, status, answer, err)
			}
		}
		t.Logf("%d connections under load", connections(t, s))
	}
	load.stop()
	accepted, refused := w.count()
	t.Logf("%d accepted, %d times 503", accepted, refused)
	testenv.Eventually(t, "connections to be given back", func() bool { return connections(t, s) <= 3*processes })
	for _, p := range append(s.apis, s.workers...) {
		if strings.Contains(p.log(), "too many clients") {
			t.Errorf("%s was refused a connection:\n%s", p.name, p.log())
		}
	}
}

// connections counts those of the processes.
func connections(t *testing.T, s *system) (n int) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'passbook-%'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
