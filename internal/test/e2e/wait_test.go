package e2e_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

var waiters = flag.Int("waiters", 320, "how many requests of TestWaiters wait at once, 1000 at most, which is a user's bound; each has 30 s")

// One API holds many requests that wait for jobs, and no connection to Postgres for them. They
// are answered when a worker has applied the jobs, though Redis is away; and on SIGTERM at once,
// with the jobs as they stand.
func TestWaiters(t *testing.T) {
	t.Parallel()
	const jobs = 50
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: plain}
	s.reach = func(string, int) []string {
		return []string{fmt.Sprint("MAX_CONNECTIONS=", *waiters+100), "MAX_CONNECTIONS_PER_ADDRESS=0", "RATE_LIMIT_PER_MINUTE=0"}
	}
	s.start(1, 0)
	c := newClient(t, s)
	accepted := make([]jobAnswer, jobs)
	for i := range accepted {
		job, err := c.settle(0, jobRequest{account: c.open(0).Number, entry: "deposits", amount: 1, key: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		accepted[i] = job
	}
	conns := make([]*waiter, *waiters)
	for i := range conns {
		conns[i] = c.wait(accepted[i%jobs].ID)
	}
	s.apis[0].holds(*waiters)
	t.Logf("%d wait; the API has %s", *waiters, s.apis[0].memory())
	var connections int
	const sql = `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'passbook-api%' AND state <> 'idle'`
	if err := s.pool.QueryRow(t.Context(), sql).Scan(&connections); err != nil || connections > 1 { // the hub's look
		t.Errorf("%d connections to Postgres at work, %v", connections, err)
	}
	if err := s.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	worker := startVariant(t, plain, "worker", s.env())
	for _, w := range conns {
		w.wants("succeeded")
	}
	s.apis[0].holds(0)
	worker.stop()

	last, err := c.settle(0, jobRequest{account: c.open(0).Number, entry: "deposits", amount: 1, key: "last"})
	if err != nil {
		t.Fatal(err)
	}
	const together = 32 // far fewer than may be in flight at once: a request that waits is not in flight
	for i, w := range conns {
		w.send(last.ID)
		if (i+1)%together == 0 {
			s.apis[0].holds(i + 1)
		}
	}
	s.apis[0].holds(*waiters)
	if err := s.apis[0].cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, w := range conns {
		w.wants("queued")
	}
	if err := s.apis[0].wait(); err != nil {
		t.Errorf("the API stopped with %v\n%s", err, s.apis[0].log())
	}
}

// waiter is a connection whose request waits for a job.
type waiter struct {
	net.Conn
	c *client
}

// wait sends a request that waits for a job as long as one may.
func (c *client) wait(job string) *waiter {
	c.t.Helper()
	conn, err := new(net.Dialer).DialContext(c.t.Context(), "tcp", c.system.apis[0].address())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	w := &waiter{Conn: conn, c: c}
	w.send(job)
	return w
}

func (w *waiter) send(job string) {
	w.c.t.Helper()
	if _, err := fmt.Fprintf(w, "GET /v1/jobs/%s?wait=30 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\n\r\n", job, w.c.token); err != nil {
		w.c.t.Fatal(err)
	}
}

// wants reads the answer, a job with the status.
func (w *waiter) wants(status string) {
	w.c.t.Helper()
	const head = 2048
	res, err := http.ReadResponse(bufio.NewReaderSize(w, head), nil)
	if err != nil {
		w.c.t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // it was read to its end
	text, err := io.ReadAll(res.Body)
	var job jobAnswer
	if err != nil || json.Unmarshal(text, &job) != nil || job.Status != status {
		w.c.t.Errorf("%d %s %v, want a job that is %s", res.StatusCode, text, err, status)
	}
}

// holds waits until so many requests wait at the API.
func (p *process) holds(requests int) {
	p.t.Helper()
	testenv.Eventually(p.t, fmt.Sprintf("%d requests to wait", requests), func() bool {
		_, metrics := get(p.t, "http://"+p.opsAddr+"/metrics")
		return strings.Contains(metrics, fmt.Sprintf("\npassbook_waiting_requests %g\n", float64(requests)))
	})
}

// memory is what Linux says that the process uses.
func (p *process) memory() string {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, used, _ := strings.Cut(string(status), "VmRSS:")
	used, _, _ = strings.Cut(used, "\n")
	return strings.TrimSpace(used)
}
