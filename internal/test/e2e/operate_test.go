package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// get reads a page of the operator's port.
func get(t testing.TB, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// databaseURL names another database of the same server.
func databaseURL(t testing.TB, server, database string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database
	return u.String()
}

// What an operator sees: health, metrics that follow the jobs, a failed job and
// its replay.
func TestOperating(t *testing.T) {
	t.Parallel()
	s, admin := newServedSystem(t, 1, 1)
	c := newClient(t, s)
	a := c.open(100)
	if _, err := admin.Exec(t.Context(), `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`); err != nil {
		t.Fatal(err)
	}
	requests := []jobRequest{
		{a.Number, "deposits", 5, "one"},
		{a.Number, "withdrawals", 1000, "too-much"},
		{a.Number, "deposits", 13, "unlucky"},
	}
	var ids []string
	for _, req := range requests {
		job, err := c.settle(0, req)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, job.ID)
	}
	s.drained()
	for i, want := range []string{"succeeded seq 2 balance 105", "rejected insufficient_funds", "failed internal_error"} {
		var job jobAnswer
		c.must(http.StatusOK, http.MethodGet, "/v1/jobs/"+ids[i], nil, &job)
		if job.outcome() != want {
			t.Errorf("job %d: %s, want %s", i, job.outcome(), want)
		}
	}

	checkOps(t, s)
	t.Run("Archive", func(t *testing.T) {
		checkArchiveArguments(t, s)
		checkArchive(t, s, admin, c, requests, ids)
	})
	t.Run("Replay", func(t *testing.T) { checkReplay(t, s, admin, c, ids[2]) })
	s.refused = ledger.MaxAttempts
	s.verify()
}

// checkOps checks health, metrics and profiles on the operator's ports.
func checkOps(t *testing.T, s *system) {
	t.Helper()
	apiOps, workerOps := s.apis[0].operator(), s.workers[0].operator()
	for _, url := range []string{apiOps, workerOps, s.api(0)} {
		for _, path := range []string{"/livez", "/readyz"} {
			if status, body := get(t, url+path); status != http.StatusOK {
				t.Errorf("%s%s: %d %s", url, path, status, body)
			}
		}
	}
	_, metrics := get(t, apiOps+"/metrics")
	_, more := get(t, workerOps+"/metrics")
	metrics += more
	for _, want := range []string{
		`passbook_jobs_accepted_total{type="deposit"} 2`,
		`passbook_jobs_accepted_total{type="withdrawal"} 1`,
		`passbook_jobs_finished_total{status="succeeded",type="deposit"} 1`,
		`passbook_jobs_finished_total{status="rejected",type="withdrawal"} 1`,
		`passbook_jobs_finished_total{status="failed",type="deposit"} 1`,
		`passbook_job_duration_seconds_count 3`,
		`passbook_oldest_queued_job_age_seconds`,
		`passbook_postgres_pool_`,
		`passbook_http_request_duration_seconds_count{method="POST",route="/v1/accounts/:number/deposits",status="202"} 2`,
		`asynq_queue_size{queue="passbook:tx:`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if status, _ := get(t, workerOps+"/debug/pprof/"); status != http.StatusOK {
		t.Errorf("pprof: %d", status)
	}
}

// checkArchiveArguments checks what archive refuses, and that it leaves young jobs alone.
func checkArchiveArguments(t *testing.T, s *system) {
	t.Helper()
	yesterday := time.Now().AddDate(0, 0, -1).Format(time.DateOnly)
	for _, test := range []struct {
		args []string
		well bool
		want string
	}{
		{[]string{"--before", "2020-01-01"}, true, "0 jobs archived"},
		{[]string{"--before", yesterday}, false, "less than 30 days ago"},
		{[]string{"--before", "soon"}, false, "neither a date"},
		{nil, false, "usage"},
	} {
		archive := begin(t, "worker", s.operatorEnv(), append([]string{"archive"}, test.args...)...)
		if err := archive.wait(); (err == nil) != test.well || !strings.Contains(archive.log(), test.want) {
			t.Errorf("%v: %v, want %q:\n%s", test.args, err, test.want, archive.log())
		}
	}
}

// checkArchive archives the two finished jobs: they read as before, and their keys answer
// with them. It changes ids to those of the jobs made older.
func checkArchive(t *testing.T, s *system, admin *pgxpool.Pool, c *client, requests []jobRequest, ids []string) {
	t.Helper()
	if _, err := admin.Exec(t.Context(), ledgertest.UnguardedSQL(ageSQL)); err != nil {
		t.Fatal(err)
	}
	for i := range ids {
		ids[i] = agedPrefix + ids[i][len(agedPrefix):]
	}
	var before, after [3]jobAnswer
	read := func(answers *[3]jobAnswer) {
		for i, id := range ids {
			c.must(http.StatusOK, http.MethodGet, "/v1/jobs/"+id, nil, &answers[i])
		}
	}
	read(&before)
	archive := begin(t, "worker", s.operatorEnv(), "archive", "--before", time.Now().AddDate(0, 0, -31).Format(time.DateOnly))
	if err := archive.wait(); err != nil || !strings.Contains(archive.log(), "2 jobs archived") {
		t.Errorf("%v, want 2 jobs archived:\n%s", err, archive.log())
	}
	if read(&after); !reflect.DeepEqual(after, before) {
		t.Errorf("the jobs read as %+v, before as %+v", after, before)
	}
	for i, req := range requests {
		if again, err := c.settle(0, req); err != nil || again.ID != ids[i] {
			t.Errorf("key %s answers with %s, %v; want job %s", req.key, again.ID, err, ids[i])
		}
	}
	verify := begin(t, "worker", s.operatorEnv(), "verify")
	if err := verify.wait(); err != nil || !strings.Contains(verify.log(), "3 jobs") {
		t.Errorf("%v, want 3 jobs verified:\n%s", err, verify.log())
	}
}

// checkReplay replays a failed job whose cause is gone.
func checkReplay(t *testing.T, s *system, admin *pgxpool.Pool, c *client, id string) {
	t.Helper()
	if _, err := admin.Exec(t.Context(), `ALTER TABLE transactions DROP CONSTRAINT unlucky`); err != nil {
		t.Fatal(err)
	}
	replay := begin(t, "worker", s.operatorEnv(), "jobs", "replay", id)
	if err := replay.wait(); err != nil {
		t.Fatalf("%v\n%s", err, replay.log())
	}
	s.drained()
	var job jobAnswer
	c.must(http.StatusOK, http.MethodGet, "/v1/jobs/"+id, nil, &job)
	if want := "succeeded seq 3 balance 118"; job.outcome() != want {
		t.Errorf("the replayed job: %s, want %s", job.outcome(), want)
	}
	again := begin(t, "worker", s.operatorEnv(), "jobs", "replay", id)
	if err := again.wait(); err == nil || !strings.Contains(again.log(), "not a failed job") {
		t.Errorf("replay of a succeeded job: %v\n%s", err, again.log())
	}
}

// agedPrefix begins the ids of jobs that were accepted in 2022.
const agedPrefix = "01800000"

// ageSQL makes all that happened sixty days older, and the jobs' ids years.
const ageSQL = `
	UPDATE jobs SET id = overlay(id::text PLACING '` + agedPrefix + `' FROM 1)::uuid,
		created_at = created_at - interval '60 days';
	UPDATE queue SET job_id = overlay(job_id::text PLACING '` + agedPrefix + `' FROM 1)::uuid;
	UPDATE rejections SET job_id = overlay(job_id::text PLACING '` + agedPrefix + `' FROM 1)::uuid, finished_at = finished_at - interval '60 days';
	UPDATE failures SET job_id = overlay(job_id::text PLACING '` + agedPrefix + `' FROM 1)::uuid, finished_at = finished_at - interval '60 days';
	UPDATE transactions SET job_id = overlay(job_id::text PLACING '` + agedPrefix + `' FROM 1)::uuid, created_at = created_at - interval '60 days';
	UPDATE accounts SET last_at = last_at - interval '60 days', created_at = created_at - interval '60 days'`

// The dashboard, in a real browser: it shows the queues.
func TestDashboard(t *testing.T) {
	t.Parallel()
	s := newSystem(t, plain, 1, 1)
	c := newClient(t, s)
	a := c.open(0)
	if _, err := c.settle(0, jobRequest{a.Number, "deposits", 5, "one"}); err != nil {
		t.Fatal(err)
	}
	s.drained()
	awaitPage(t, s.workers[0].operator()+"/queues", "passbook:tx:")
}

// awaitPage looks at a page in a real browser until it shows what is wanted. On a busy
// machine a page takes its time, and now and then a Chromium hangs: another look gives
// it twice as long. Not in virtual time: the dashboard asks again and again, and one
// Chromium in four dies of it.
func awaitPage(t *testing.T, url, want string) {
	t.Helper()
	var dom string
	for _, look := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second} {
		var err error
		if dom, err = dumpDOM(t, url, look); err != nil {
			t.Logf("chromium: %v", err)
		} else if strings.Contains(dom, want) {
			return
		}
	}
	t.Errorf("the page never shows %q:\n%s", want, dom)
}

// dumpDOM is what a page shows in a real browser after a while.
func dumpDOM(t *testing.T, url string, after time.Duration) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after+patience)
	defer cancel()
	chromium := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir="+t.TempDir(), fmt.Sprintf("--timeout=%d", after.Milliseconds()), "--dump-dom", url)
	// Its own processes end with it.
	chromium.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	chromium.Cancel = func() error { return syscall.Kill(-chromium.Process.Pid, syscall.SIGKILL) }
	chromium.WaitDelay = patience // one that has left the group may keep the output open
	dom, err := chromium.Output()
	return string(dom), err
}

// Processes whose queues are another installation's say so and apply without them, and
// need no restart once the mix-up is over.
func TestMixUp(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	r := s.redisClient()
	key := queues.Prefix + ":installation"
	if err := r.Set(t.Context(), key, "another", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.start(1, 1)
	c := newClient(t, s)
	if _, err := c.settle(0, jobRequest{c.open(0).Number, "deposits", 5, "one"}); err != nil {
		t.Fatal(err)
	}
	s.drained()
	said := func(p *process, state, figure string) bool {
		_, metrics := get(t, p.operator()+"/metrics")
		status, ready := get(t, p.operator()+"/readyz")
		return status == http.StatusOK && strings.Contains(metrics, queue.OwnerMetric+" "+figure) &&
			(p == s.apis[0] || strings.Contains(ready, `{"name":"queues","status":"`+state+`"`))
	}
	for _, p := range []*process{s.apis[0], s.workers[0]} {
		if !said(p, "down", "1") || strings.Count(p.log(), `"level":"ERROR"`) != 1 {
			t.Errorf("%s does not report the mix-up, once:\n%s", p.name, p.log())
		}
	}
	if tasks, err := r.Keys(t.Context(), "asynq:{*}:t:*").Result(); err != nil || len(tasks) > 0 {
		t.Errorf("tasks in another's queues: %v, %v", tasks, err)
	}
	if err := r.Del(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*process{s.apis[0], s.workers[0]} {
		testenv.Eventually(t, "the mix-up to be over", func() bool { return said(p, "up", "0") })
	}
}

// A program that can't start says everything that is wrong with its settings,
// and ends.
func TestStartFaults(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	s := &system{t: t, postgres: server, redis: testenv.RedisServer(t)}
	env := func(changes ...string) []string { return append(s.env(), changes...) }
	running := start(t, "api", s.env())
	empty := databaseURL(t, server.URL(), "template1")
	tests := []struct {
		name, program string
		env           []string
		want          []string
	}{
		{"NothingSet/api", "api", nil, []string{"DATABASE_URL", "REDIS_URL", "JWT_KEYS"}},
		{"NothingSet/worker", "worker", nil, []string{"DATABASE_URL", "REDIS_URL"}},
		{"EverythingWrong", "api", []string{
			"DATABASE_URL=x://", "REDIS_URL=y://", "JWT_KEYS=short:AAAA", "HTTP_ADDR=z", "OPS_ADDR=0.0.0.0:1", "QUEUE_PARTITIONS=0",
			"MAX_QUEUED_PER_ACCOUNT=-1", "LOG_LEVEL=loud", "LOG_FORMAT=xml",
		}, []string{
			"DATABASE_URL", "REDIS_URL", "JWT_KEYS", "HTTP_ADDR", "OPS_TOKEN", "QUEUE_PARTITIONS",
			"MAX_QUEUED_PER_ACCOUNT", "LOG_LEVEL", "LOG_FORMAT",
		}},
		{"TakenPort", "api", env("HTTP_ADDR=" + running.addr), []string{running.addr, "HTTP_ADDR"}},
		{"TakenOpsPort", "worker", env("OPS_ADDR=" + running.opsAddr), []string{running.opsAddr, "OPS_ADDR"}},
		{"NeverMigrated/api", "api", env("DATABASE_URL=" + empty), []string{"schema", "api migrate"}},
		{"NeverMigrated/worker", "worker", env("DATABASE_URL=" + empty), []string{"schema", "api migrate"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := begin(t, test.program, test.env)
			if err := p.wait(); err == nil {
				t.Error("it ended well")
			}
			for _, want := range test.want {
				if !strings.Contains(p.log(), want) {
					t.Errorf("it does not mention %s:\n%s", want, p.log())
				}
			}
		})
	}
	t.Run("NewerSchema", func(t *testing.T) {
		pool := s.connect()
		if _, err := pool.Exec(t.Context(), `INSERT INTO passbook_schema_version (version_id, is_applied) VALUES (99999, true)`); err != nil {
			t.Fatal(err)
		}
		p := begin(t, "worker", s.env())
		if err := p.wait(); err == nil || !strings.Contains(p.log(), "99999") {
			t.Errorf("on a schema of the future: %v\n%s", err, p.log())
		}
		if status, body := get(t, "http://"+running.addr+"/readyz"); status != http.StatusOK {
			t.Errorf("a running API is not ready any more: %d %s", status, body)
		}
	})
}

// Readiness follows what a process stands on: without Redis the API is ready
// and accepts, the worker is not; without Postgres neither is.
func TestReadiness(t *testing.T) {
	t.Parallel()
	s := newSystem(t, plain, 1, 1)
	c := newClient(t, s)
	a := c.open(0)
	check := func(when, url string, want int) {
		t.Helper()
		testenv.Eventually(t, fmt.Sprintf("%s: %s to answer %d", when, url, want), func() bool {
			status, _ := get(t, url+"/readyz")
			return status == want
		})
	}
	workerOps := s.workers[0].operator()
	if err := s.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	check("without Redis", workerOps, http.StatusServiceUnavailable)
	check("without Redis", s.api(0), http.StatusOK)
	status, answer, err := c.send(t.Context(), 0, jobRequest{a.Number, "deposits", 1, "no-redis"})
	if err != nil || status != http.StatusAccepted {
		t.Errorf("without Redis: %d %s %v, want 202", status, answer, err)
	}
	if err := s.postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	check("without Postgres", s.api(0), http.StatusServiceUnavailable)
	status, answer, err = c.send(t.Context(), 0, jobRequest{a.Number, "deposits", 1, "no-postgres"})
	if err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("without Postgres: %d %s %v, want 503", status, answer, err)
	}
	if err := s.redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pool.Reset()
	check("with everything back", s.api(0), http.StatusOK)
	check("with everything back", workerOps, http.StatusOK)
	s.drained()
	if n := len(c.checkHistory(a.Number)); n != 1 {
		t.Errorf("%d transactions, want that of the accepted job", n)
	}
	s.verify()
}
