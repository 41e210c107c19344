package e2e_test

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

const (
	// failoverBound is how soon after a promotion a request is accepted and done.
	failoverBound = 15 * time.Second
	// loadBound is what a loaded machine may add to that.
	loadBound = 2 * time.Second
)

// newReplicatedSystem is a system whose Postgres has a standby. The processes
// know both, and work with whichever takes writes.
func newReplicatedSystem(t *testing.T, apis, workers int) (s *system, standby *local.Postgres) {
	t.Helper()
	s = &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: plain}
	standby = testenv.PostgresStandby(t, s.postgres)
	s.databaseURL = testenv.EitherURL(t, s.postgres.URL(), standby.URL())
	s.start(apis, workers)
	return s, standby
}

// The primary dies under load, an operator's tool promotes the standby, and
// the processes get no notice: no accepted job is lost or applied twice, and meanwhile
// clients get 503.
func TestFailover(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		kill func(*local.Postgres) error
	}{
		{"Immediate", func(pg *local.Postgres) error { return pg.Kill() }},
		{"SIGKILL", func(pg *local.Postgres) error {
			err := syscall.Kill(pg.PID(), syscall.SIGKILL)
			<-pg.Done()
			return err
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			const clients, some = 6, 100
			s, standby := newReplicatedSystem(t, 2, 2)
			c := newClient(t, s)
			extra := c.open(0)
			var w responseCheck
			c.watch = w.see
			clientsAtWork := startLoad(c, clients)
			w.awaitAccepted(t, some)

			if err := test.kill(s.postgres); err != nil {
				t.Fatal(err)
			}
			w.awaitRefused(t, 2*clients) // what was in flight has had its answer
			before, _ := w.count()
			w.awaitRefused(t, 2*clients)
			if after, _ := w.count(); after != before {
				t.Errorf("%d jobs were accepted without a Postgres that takes writes", after-before)
			}

			promoted := time.Now()
			if err := standby.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.pool.Reset()
			s.finish(c, jobRequest{extra.Number, "deposits", 1, "after-the-failover"})
			took := time.Since(promoted)
			t.Logf("accepted and done %v after the promotion began", took)
			if took > failoverBound {
				t.Errorf("the service took %v to go on, want %v at most", took, failoverBound)
			}
			w.awaitAccepted(t, some)
			clientsAtWork.stop()
			w.check(t, refusalBound+loadBound)
		})
	}
}

// finish sends a request and waits until it is done.
func (s *system) finish(c *client, req jobRequest) {
	s.t.Helper()
	job, err := c.settle(0, req)
	if err != nil {
		s.t.Fatal(err)
	}
	testenv.Eventually(s.t, "job "+job.ID+" is done", func() bool {
		var done bool
		err := s.pool.QueryRow(s.t.Context(), `SELECT status <> 'queued' FROM job_states WHERE id = $1`, job.ID).Scan(&done)
		return err == nil && done
	})
}

// With the standby away, a job or an account may be committed on the primary
// alone, where every session can see it. No answer may show it, neither to the first
// request nor to a retry: a failover takes it back.
func TestStandbyAway(t *testing.T) {
	t.Parallel()
	s, standby := newReplicatedSystem(t, 1, 1)
	c := newClient(t, s)
	a := c.open(0)
	if err := standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		body       any
	}{
		{"Deposit", "/v1/accounts/" + a.Number + "/deposits", map[string]any{"amount": 5}},
		{"Account", "/v1/accounts", map[string]any{"number": "AWAY-0001"}},
	}
	var w responseCheck
	c.watch = w.see
	for _, test := range tests {
		for try := range 2 {
			status, answer, err := c.request(t.Context(), c.system.api(0), http.MethodPost, test.path, test.name, test.body)
			if err != nil || status != http.StatusServiceUnavailable {
				t.Errorf("%s, try %d: %d %s %v; want 503", test.name, try, status, answer, err)
			}
		}
	}
	if err := s.postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pool.Reset()
	s.finish(c, jobRequest{a.Number, "deposits", 5, tests[0].name})
	if n := len(c.checkHistory(a.Number)); n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
	w.check(t, refusalBound+loadBound)
	s.verify()
}
