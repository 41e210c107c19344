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
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

var waiters = flag.Int("waiters", 320, "how many requests of TestWaiters wait at once, 10000 at most; each has 30 s")

const (
	waitersPerUser = 1000 // which is a user's bound
	jobsPerUser    = 50   // each is waited for by many
	sentTogether   = 128  // far fewer than may be in flight at once: a request that waits is not in flight
)

// One API holds many requests that wait for jobs, with no connection to Postgres and no query of
// their own. They are answered when a worker has applied the jobs, though Redis is away; and on
// SIGTERM at once, with the jobs as they stand.
func TestWaiters(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: plain}
	s.reach = func(string, int) []string {
		return []string{fmt.Sprint("MAX_CONNECTIONS=", *waiters+100), "MAX_CONNECTIONS_PER_ADDRESS=0"}
	}
	s.start(1, 0)
	w := newWaiting(t, s, *waiters)
	w.sendAll(jobsPerUser)
	if err := s.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	w.checkQueries()
	worker := startVariant(t, plain, "worker", s.env())
	w.wantAll("succeeded")
	s.apis[0].holds(0)
	worker.stop()

	w.sendAll(1)
	if err := s.apis[0].cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.wantAll("queued")
	if err := s.apis[0].wait(); err != nil {
		t.Errorf("the API stopped with %v\n%s", err, s.apis[0].log())
	}
}

// waiting are requests that wait for jobs at one API, and their users.
type waiting struct {
	*system
	users    []*client
	requests int
	conns    []*waiter // one for each request; it stays open from one wait to the next
	rounds   int
}

func newWaiting(t *testing.T, s *system, requests int) *waiting {
	t.Helper()
	w := &waiting{system: s, requests: requests}
	for n := 0; n < requests; n += waitersPerUser {
		w.users = append(w.users, newUser(t, s))
	}
	return w
}

// newUser is a client that keeps no connection between its requests.
func newUser(t *testing.T, s *system) *client {
	t.Helper()
	c := newClient(t, s)
	c.http.CloseIdleConnections()
	c.http.Transport = &http.Transport{DisableKeepAlives: true}
	return c
}

// sendAll has jobs of each user accepted, and sends all requests to wait for them.
func (w *waiting) sendAll(jobs int) {
	w.t.Helper()
	w.rounds++
	accepted := make([][]jobAnswer, len(w.users))
	for i, c := range w.users {
		requests, number := make([]jobRequest, jobs), c.open(0).Number
		for n := range requests {
			requests[n] = jobRequest{account: number, entry: "deposits", amount: 1, key: fmt.Sprintf("%d.%d", w.rounds, n)}
		}
		var err error
		if accepted[i], err = c.settleBatch(0, requests); err != nil {
			w.t.Fatal(err)
		}
	}
	for n := range w.requests {
		if n == len(w.conns) { // not before: the API closes a new connection whose request does not come
			w.conns = append(w.conns, w.users[n/waitersPerUser].waiter())
		}
		w.conns[n].send(accepted[n/waitersPerUser][n%jobs].ID)
		if (n+1)%sentTogether == 0 {
			w.apis[0].holds(n + 1)
		}
	}
	w.apis[0].holds(w.requests)
	w.t.Logf("%d requests wait; the API has %s", w.requests, w.apis[0].memory())
}

// checkQueries checks that the requests that wait share the queries of the hub, and have no connection
// to Postgres.
func (w *waiting) checkQueries() {
	w.t.Helper()
	const some, mostInASecond, connections, probes = 8, 40, 16, 2
	began, before := time.Now(), w.apis[0].acquires()
	var queries float64
	testenv.Eventually(w.t, "some looks of the hub", func() bool {
		queries = w.apis[0].acquires() - before
		return queries >= some
	})
	if took := time.Since(began); queries > some+mostInASecond*took.Seconds() {
		w.t.Errorf("%d requests that wait cost %g queries in %v", len(w.conns), queries, took)
	}
	var open, working int
	const sql = `SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity WHERE application_name LIKE 'passbook-api%'`
	if err := w.pool.QueryRow(w.t.Context(), sql).Scan(&open, &working); err != nil || open > connections || working > probes+1 { // and the hub's look
		w.t.Errorf("%d connections to Postgres, %d of them at work, %v", open, working, err)
	}
}

// wantAll reads all answers, each a job with the status.
func (w *waiting) wantAll(status string) {
	w.t.Helper()
	for _, conn := range w.conns {
		conn.wants(status)
	}
}

// waiter is a connection whose request waits for a job.
type waiter struct {
	net.Conn
	c *client
}

// waiter opens a connection for requests that wait.
func (c *client) waiter() *waiter {
	c.t.Helper()
	conn, err := new(net.Dialer).DialContext(c.t.Context(), "tcp", c.system.apis[0].address())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return &waiter{Conn: conn, c: c}
}

// send sends a request that waits for a job as long as one may.
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
		return p.metric("passbook_waiting_requests") == float64(requests)
	})
}

// acquires is how often the process has taken a connection to Postgres: for a query, or a transaction.
func (p *process) acquires() float64 {
	p.t.Helper()
	return p.metric("passbook_postgres_pool_acquires_total")
}

// metric is the sum of the series of a gauge or counter.
func (p *process) metric(name string) (sum float64) {
	p.t.Helper()
	for _, metric := range scrape(p.t, p)[name].GetMetric() {
		sum += metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
	}
	return sum
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
