package api

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// startHearing starts an API that hears what finish publishes, over a real Redis.
func startHearing(t *testing.T, edits ...func(*settings)) (s *server, finish func(id string)) {
	t.Helper()
	client, err := queue.Connect(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	queues, log := queue.Queues{Prefix: "test", Partitions: 1}, slog.New(slog.DiscardHandler)
	publisher := queue.NewPublisher(client, queues, log, func(int) {})
	ctx, cancel := context.WithCancel(context.Background())
	var publishing errgroup.Group
	publishing.Go(func() error { return publisher.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		_ = publishing.Wait() // returns no error
	})
	s = start(t, append(edits, func(set *settings) { set.messages = queue.NewSubscription(client, queues, log) })...)
	return s, func(id string) {
		t.Helper()
		applied, _, err := ledger.NewApplier(s.pool).Apply(t.Context(), uuid.MustParse(id), manyQueued)
		if err != nil {
			t.Fatal(err)
		}
		var finished []queue.Finished
		for _, one := range applied {
			finished = append(finished, queue.Finished{JobID: one.JobID, AccountID: one.AccountID})
		}
		publisher.Publish(finished)
	}
}

// held is a request whose answer is not there yet.
type held struct{ answered chan answer }

// hold sends a request beside the test, and returns once so many requests wait for a job.
func (c client) hold(waiting int, method, target, body string, headers ...string) held {
	c.t.Helper()
	h := held{make(chan answer, 1)}
	go func() {
		a, err := c.try(method, target, body, headers...)
		if err != nil {
			c.t.Error(err)
		}
		h.answered <- a
	}()
	c.server.waits(c.t, waiting)
	return h
}

func (h held) answer(t *testing.T) (a answer) {
	t.Helper()
	testenv.Eventually(t, "the answer", func() bool {
		select {
		case a = <-h.answered:
			return true
		default:
			return false
		}
	})
	return a
}

// waits waits until so many requests wait for a job.
func (s *server) waits(t *testing.T, requests int) {
	t.Helper()
	testenv.Eventually(t, fmt.Sprintf("%d requests to wait", requests), func() bool {
		var m dto.Metric
		if err := s.api.metrics.waiting.Write(&m); err != nil {
			t.Error(err)
		}
		return int(m.GetGauge().GetValue()) == requests
	})
}

// lastJob is the account's job that was accepted last.
func (c client) lastJob(account accountJSON) jobJSON {
	c.t.Helper()
	return decode[pageJSON[jobJSON]](c.get(jobsOf(account, "jobs")).want(http.StatusOK)).Data[0]
}

var preferLong = []string{"Content-Type", "application/json", "Prefer", "wait=30"}

// A request waits until its job is finished, and every request that waits for one job gets it,
// whether a message tells of it or not.
func TestWait(t *testing.T) {
	t.Parallel()
	for name, hears := range map[string]bool{"Message": true, "NoMessage": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, finish := startHearing(t)
			if !hears {
				finish = func(id string) { s.apply(t, id) }
			}
			c := s.user(t)
			account := c.open(100)
			for kind, status := range map[string]string{"deposits": "succeeded", "withdrawals": "rejected"} {
				body := `{"amount":1}`
				if kind == "withdrawals" {
					body = `{"amount":1000}`
				}
				key := uuid.NewString()
				headers := append([]string{"Idempotency-Key", key}, preferLong...)
				posted := c.hold(1, http.MethodPost, jobsOf(account, kind), body, headers...)
				queued := c.lastJob(account)
				repeated := c.hold(2, http.MethodPost, jobsOf(account, kind), body, headers...)
				read := c.hold(3, http.MethodGet, "/v1/jobs/"+strings.ToUpper(queued.ID)+"?wait=30", "")
				finish(queued.ID)
				first := posted.answer(t).want(http.StatusOK).wantHeader("Preference-Applied", "wait=30").wantNoHeader("Retry-After").
					wantHeader("Location", "/v1/jobs/"+queued.ID).wantNoHeader(headerReplay)
				if got := decode[jobJSON](first); got.ID != queued.ID || got.Status != status {
					t.Errorf("got %s", first)
				}
				again := repeated.answer(t).want(http.StatusOK).wantHeader(headerReplay, "true")
				got := read.answer(t).want(http.StatusOK).wantNoHeader("Retry-After").wantNoHeader("Preference-Applied")
				if string(first.body) != string(again.body) || string(first.body) != string(got.body) {
					t.Errorf("different answers for one job:\n%s\n%s\n%s", first, again, got)
				}
				s.waits(t, 0)

				c.post(jobsOf(account, kind), body, headers...).want(http.StatusOK).
					wantHeader("Preference-Applied", "wait=30").wantHeader(headerReplay, "true")
				c.get("/v1/jobs/" + queued.ID + "?wait=30").want(http.StatusOK)
			}
		})
	}
}

// A batch waits until all its jobs are finished.
func TestWait_Batch(t *testing.T) {
	t.Parallel()
	s, finish := startHearing(t)
	c := s.user(t)
	account := c.open(0)
	body := batchOf(t, "a", "b", "c")
	posted := c.hold(1, http.MethodPost, jobsOf(account, "jobs"), body, preferLong...)
	accepted := decode[pageJSON[jobJSON]](c.get(jobsOf(account, "jobs") + "?order=asc").want(http.StatusOK)).Data
	finish(accepted[1].ID) // and the one before it
	s.waits(t, 1)
	finish(accepted[2].ID)
	got := decode[batchJSON](posted.answer(t).want(http.StatusOK).wantHeader("Preference-Applied", "wait=30").wantNoHeader("Retry-After"))
	for i, job := range got.Data {
		if job.ID != accepted[i].ID || job.Status == "queued" {
			t.Errorf("job %d is %v, want %s", i, job, accepted[i].ID)
		}
	}
	c.post(jobsOf(account, "jobs"), batchOf(t, "c", "d"), "Prefer", "wait=1").problem(http.StatusUnprocessableEntity, "idempotency_key_reused", "/jobs/0/idempotency_key idempotency_key_reused")
	over := c.post(jobsOf(account, "jobs"), batchOf(t, "d", "e"), "Prefer", "wait=1").want(http.StatusAccepted).wantHeader("Retry-After", "1")
	if jobs := decode[batchJSON](over).Data; len(jobs) != 2 || jobs[0].Status != "queued" {
		t.Errorf("got %s", over)
	}
}

// When the wait is over, the answer is the job as it stands.
func TestWait_Over(t *testing.T) {
	t.Parallel()
	s, _ := startHearing(t, func(set *settings) { set.timeout = requestTimeout })
	c := s.user(t)
	account := c.open(0)
	began := time.Now()
	posted := c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k", "Prefer", "wait=1").
		want(http.StatusAccepted).wantHeader("Preference-Applied", "wait=1").wantHeader("Retry-After", "1")
	if took := time.Since(began); took < time.Second {
		t.Errorf("answered after %v", took)
	}
	began = time.Now()
	got := c.get("/v1/jobs/"+decode[jobJSON](posted).ID+"?wait=2").want(http.StatusOK).wantHeader("Retry-After", "1")
	if took := time.Since(began); took < 2*time.Second { // longer than a request without a wait may take
		t.Errorf("answered after %v", took)
	}
	if string(got.body) != string(posted.body) {
		t.Errorf("got %s\nwant %s", got, posted)
	}
	c.get("/v1/jobs/"+decode[jobJSON](posted).ID+"?wait=0").want(http.StatusOK).wantHeader("Retry-After", "1")
	c.send(http.MethodHead, "/v1/jobs/"+decode[jobJSON](posted).ID+"?wait=1", "").want(http.StatusOK)
}

// A request does not wait for what is not the caller's, and a wait is a whole number from 0 to 30.
func TestWait_Refused(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, other := s.user(t), s.user(t)
	queued := c.ask(c.open(0), "deposits", 1)
	other.get("/v1/jobs/"+queued.ID+"?wait=30").problem(http.StatusNotFound, "job_not_found")
	c.get("/v1/jobs/"+uuid.NewString()+"?wait=30").problem(http.StatusNotFound, "job_not_found")
	for wait, code := range map[string]string{
		"31": "out_of_range", "-1": "out_of_range", "": "invalid_type", "x": "invalid_type", "1.0": "invalid_type",
		"01": "invalid_type", "%2B1": "invalid_type", "99999999999999999999": "invalid_type", "0&wait=0": "repeated_parameter",
	} {
		c.get("/v1/jobs/"+queued.ID+"?wait="+wait).problem(http.StatusBadRequest, "invalid_parameter", "wait "+code)
	}
	c.get("/v1/jobs/"+queued.ID+"?Wait=0").problem(http.StatusBadRequest, "invalid_parameter", "Wait unknown_parameter")
}

// RFC 7240: a preference that can't be read, or kept, is ignored; of several the first counts.
func TestPreferredWait(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		headers []string
		want    int
	}{
		{nil, 0},
		{[]string{"wait=5"}, 5},
		{[]string{"wait=30"}, 30},
		{[]string{"WAIT = 7"}, 7},
		{[]string{"wait=05"}, 5},
		{[]string{`wait="5"`}, 5},
		{[]string{"wait=5; reason=x"}, 5},
		{[]string{`wait=5;a;b="c,d"`}, 5},
		{[]string{"respond-async, wait=10"}, 10},
		{[]string{"respond-async,,wait=10,"}, 10},
		{[]string{"return=minimal", "wait=10"}, 10},
		{[]string{`other="a, wait=5"`}, 0},
		{[]string{`other="a\", wait=5", wait=6`}, 6},
		{[]string{"wait=5, wait=6"}, 5},
		{[]string{"wait=0, wait=6"}, 0},
		{[]string{"wait=0"}, 0},
		{[]string{"wait=31"}, 0},
		{[]string{"wait=300"}, 0},
		{[]string{"wait=-5"}, 0},
		{[]string{"wait=+5"}, 0},
		{[]string{"wait=5.0"}, 0},
		{[]string{"wait"}, 0},
		{[]string{"wait="}, 0},
		{[]string{"wait=5 6"}, 0},
		{[]string{"waiting=5"}, 0},
		{[]string{`other="open, wait=5`}, 0},
		{[]string{"@, wait=5"}, 0},
		{[]string{"@", "wait=5"}, 5},
		{[]string{strings.Repeat("a,", maxPreferences) + "wait=5"}, 0},
	} {
		app := fiber.New()
		c := app.AcquireCtx(&fasthttp.RequestCtx{})
		for _, header := range test.headers {
			c.Request().Header.Add(headerPrefer, header)
		}
		if got, want := preferredWait(c), time.Duration(test.want)*time.Second; got != want {
			t.Errorf("%q: %v, want %v", test.headers, got, want)
		}
		app.ReleaseCtx(c)
	}
}

// An accept whose preference is ignored does not wait.
func TestWait_PreferenceIgnored(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	account := c.open(0)
	for _, prefer := range []string{"wait=0", "wait=31", "wait", "respond-async"} {
		c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", uuid.NewString(), "Prefer", prefer).
			want(http.StatusAccepted).wantNoHeader("Preference-Applied")
	}
}

// When the process begins to stop, or the API shuts down, all that wait are answered at once, with
// the job as it stands; later requests are not held.
func TestWait_Stops(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	s := start(t, func(set *settings) { set.stopping = stopping })
	c := s.user(t)
	account := c.open(0)
	posted := c.hold(1, http.MethodPost, jobsOf(account, "deposits"), `{"amount":1}`, append([]string{"Idempotency-Key", "k"}, preferLong...)...)
	read := c.hold(2, http.MethodGet, "/v1/jobs/"+c.lastJob(account).ID+"?wait=30", "")
	close(stopping)
	posted.answer(t).want(http.StatusAccepted).wantHeader("Retry-After", "1").wantCloses(true)
	read.answer(t).want(http.StatusOK).wantHeader("Retry-After", "1").wantCloses(true)
	c.post(jobsOf(account, "deposits"), `{"amount":1}`, append([]string{"Idempotency-Key", "l"}, preferLong...)...).
		want(http.StatusAccepted).wantNoHeader("Preference-Applied")

	s = start(t) // whose process does not say that it stops
	c = s.user(t)
	queued := c.ask(c.open(0), "deposits", 1)
	read = c.hold(1, http.MethodGet, "/v1/jobs/"+queued.ID+"?wait=30", "")
	if err := s.api.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	read.answer(t).want(http.StatusOK).wantHeader("Retry-After", "1")
}

// A client that hangs up waits no more. One that only ends its side of the connection is answered.
func TestWait_HangUp(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	target := "/v1/jobs/" + c.ask(c.open(0), "deposits", 1).ID + "?wait=30"
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\n\r\n", target, c.token)
	dial := func() *net.TCPConn {
		conn, _ := s.dial(t).(*net.TCPConn)
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	gone, half := dial(), dial()
	s.waits(t, 2)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	s.waits(t, 1)
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(half), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("got %d", res.StatusCode)
	}
	s.waits(t, 0)

	conn := dial() // its next request is no reason to give up the wait
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	s.waits(t, 1)
	<-time.After(hungUpEvery + hungUpEvery/2)
	s.waits(t, 1)
}

// Where too many requests wait already, one more is answered at once.
func TestWait_TooMany(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	for {
		if _, _, ok := s.hub.Wait(uuid.New(), uuid.New()); !ok {
			break
		}
	}
	c.post(jobsOf(account, "deposits"), `{"amount":1}`, append([]string{"Idempotency-Key", "k"}, preferLong...)...).
		want(http.StatusAccepted).wantNoHeader("Preference-Applied").wantHeader("Retry-After", "1")
	c.get("/v1/jobs/"+c.lastJob(account).ID+"?wait=30").want(http.StatusOK).wantHeader("Retry-After", "1")
}

// An ETag changes with the job. With a wait, the answer to a client that has the queued job comes
// when the job changes.
func TestETag(t *testing.T) {
	t.Parallel()
	s, finish := startHearing(t)
	c := s.user(t)
	path := "/v1/jobs/" + c.ask(c.open(0), "deposits", 1).ID
	first := c.get(path).want(http.StatusOK).wantHeader("Cache-Control", "no-store")
	queued := first.header.Get("ETag")
	for _, header := range []string{queued, "W/" + queued, `"x", ` + queued, "*"} {
		a := c.get(path, "If-None-Match", header).want(http.StatusNotModified).
			wantHeader("ETag", queued).wantHeader("Cache-Control", "no-store").wantHeader("Retry-After", "1").wantNoHeader("Content-Type")
		if len(a.body) > 0 {
			t.Errorf("%s: got %s", header, a)
		}
	}
	c.get(path, "If-None-Match", queued, "Cache-Control", "no-cache").want(http.StatusNotModified) // as fetch sends it
	for _, header := range []string{`"x"`, "x", strings.Trim(queued, `"`)} {
		c.get(path, "If-None-Match", header).want(http.StatusOK)
	}
	plain, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	plain.Header.Set("Authorization", "Bearer "+c.token)
	c.sendRawAs(plain, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nIf-Modified-Since: %s\r\n\r\n",
		path, c.token, time.Now().UTC().Format(http.TimeFormat))).want(http.StatusOK)
	c.get(path+"?wait=1", "If-None-Match", queued).want(http.StatusNotModified)

	waiting := c.hold(1, http.MethodGet, path+"?wait=30", "", "If-None-Match", queued)
	finish(strings.TrimPrefix(path, "/v1/jobs/"))
	finished := waiting.answer(t).want(http.StatusOK)
	if status := decode[jobJSON](finished).Status; status != "succeeded" || finished.header.Get("ETag") == queued {
		t.Errorf("got %s", finished)
	}
	c.get(path+"?wait=30", "If-None-Match", finished.header.Get("ETag")).want(http.StatusNotModified).wantNoHeader("Retry-After")
	c.send(http.MethodHead, path, "", "If-None-Match", finished.header.Get("ETag")).want(http.StatusNotModified)
	if other := c.get("/v1/jobs/" + c.ask(c.open(0), "deposits", 1).ID); other.header.Get("ETag") == queued {
		t.Errorf("two jobs with one ETag")
	}
}

// A request that waits gets no end that is not durable yet.
func TestGate_Waiting(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	s, _ := startHearing(t, func(set *settings) { set.pool = openPool(t, server.URL()) })
	c := s.user(t)
	queued := c.ask(c.open(0), "deposits", 1)
	c.get("/v1/accounts").want(http.StatusOK) // all up to here is confirmed
	back := testenv.AwayStandby(t, server.URL())
	long := c.hold(1, http.MethodGet, "/v1/jobs/"+queued.ID+"?wait=30", "")
	short := c.hold(2, http.MethodGet, "/v1/jobs/"+queued.ID+"?wait=3", "")
	s.applyUnflushed(t, queued.ID)
	if got := decode[jobJSON](short.answer(t).want(http.StatusOK)); got.Status != string(job.Queued) {
		t.Errorf("told before it was durable: %v", got)
	}
	back()
	if got := decode[jobJSON](long.answer(t).want(http.StatusOK)); got.Status != string(job.Succeeded) {
		t.Errorf("got %v", got)
	}
}
