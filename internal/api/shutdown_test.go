package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A request in flight when the server begins to stop is answered, and its
// connection ends after the answer.
func TestShutdown_AnswersWhatIsInFlight(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	c.get("/livez").want(http.StatusOK) // an idle connection remains

	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := lock.Exec(t.Context(), `LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it has been read to its end
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nIdempotency-Key: k\r\n"+
		"Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"amount\":1}", jobsOf(account, "deposits"), c.token); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the accept waits for the lock", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`
		if err := s.pool.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})

	var stopping errgroup.Group
	stopping.Go(func() error { return s.api.Shutdown(t.Context()) })
	testenv.Eventually(t, "the server takes no more connections", func() bool {
		late, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.addr)
		if err == nil {
			_ = late.Close()
		}
		return err != nil
	})
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := readAnswer(t, mustRequest(t, c, jobsOf(account, "deposits")), `{"amount":1}`, res)
	if err != nil {
		t.Fatal(err)
	}
	a.want(http.StatusAccepted)
	if !res.Close {
		t.Error("the answer does not say that the connection closes")
	}
	if rest, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %q, %v", rest, err)
	}
	if err := stopping.Wait(); err != nil {
		t.Error(err)
	}
	if found := ledgertest.Check(t, s.pool); found.Jobs != 1 {
		t.Errorf("%d jobs, want 1", found.Jobs)
	}
}

// mustRequest is the request that was written by hand.
func mustRequest(t *testing.T, c client, target string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.server.addr+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Idempotency-Key", "k")
	req.Header.Set("Content-Type", "application/json")
	return req
}

// A server that is stopped before it serves does not begin.
func TestShutdown_BeforeServe(t *testing.T) {
	t.Parallel()
	s := start(t)
	early := s.newAPI(t, nil, settings{keys: []auth.Key{firstKey}})
	if err := early.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := early.Serve(listener); err != nil {
		t.Error(err)
	}
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the listener is open")
	}
}

// During the shutdown delay /readyz says that the process stops. The API still answers requests, over
// new connections too, and each answer closes its connection.
func TestShutdown_Delay(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	s := start(t, func(set *settings) {
		set.stopping = stopping
		set.checks = []ops.Check{{Name: "postgres", Required: true, Probe: func(context.Context) error { return nil }}}
	})
	c := s.user(t)
	account := c.open(0)
	c.get("/readyz").want(http.StatusOK).wantCloses(false)
	close(stopping)
	a := c.get("/readyz").want(http.StatusServiceUnavailable).wantCloses(true)
	wantJSON(t, a, `{"status":"shutting_down","dependencies":[{"name":"postgres","status":"up","required":true}]}`)
	for range 3 {
		c.get("/livez").want(http.StatusOK).wantCloses(true)
		c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k").want(http.StatusAccepted).wantCloses(true)
		c.get("/nowhere").want(http.StatusNotFound).wantCloses(true)
	}
}

// A request that has arrived in part when the server stops does not delay the stop. The server resets
// no connection: neither an idle one, nor one that has sent nothing, nor one with more requests
// behind the last answered one.
func TestShutdown_ResetsNothing(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) {
		set.edit = func(a *API) { a.app.Server().ReadTimeout = time.Hour }
	})
	const get, head = "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n", "POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
	tests := []struct {
		name, sent string
		want       []int // answers, the first of them before the stop where idle
		idle       bool
		mayEnd     bool // without a further answer, if the server has not yet begun to read what follows
	}{
		{name: "Nothing", sent: ""},
		{name: "Idle", sent: get, want: []int{200}, idle: true},
		{name: "HalfTheFirstLine", sent: "GET /li", want: []int{408}},
		{name: "HalfTheHead", sent: head, want: []int{408}},
		{name: "HalfTheBody", sent: head + "Content-Length: 10\r\n\r\n{", want: []int{408}},
		{name: "HalfAChunk", sent: head + "Transfer-Encoding: chunked\r\n\r\na\r\n{", want: []int{408}},
		{name: "HalfTheSecond", sent: get + "GET /li", want: []int{200, 408}, idle: true, mayEnd: true},
	}
	var conns []*bufio.Reader
	for _, test := range tests {
		conn := s.dial(t)
		if _, err := io.WriteString(conn, test.sent); err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(conn)
		if test.idle {
			wantAnswers(t, test.name, reader, 200)
		}
		conns = append(conns, reader)
	}
	testenv.Eventually(t, "every request has begun to arrive", func() bool {
		return s.api.app.Server().GetOpenConnectionsCount() == int32(len(tests))
	})
	if err := s.api.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, test := range tests {
		want := test.want
		if test.idle {
			want = want[1:]
		}
		if _, err := conns[i].Peek(1); test.mayEnd && errors.Is(err, io.EOF) {
			continue
		}
		wantAnswers(t, test.name, conns[i], want...)
		if rest, err := conns[i].ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: then %q, %v; want the end", test.name, rest, err)
		}
	}
}

// A client that sends more requests than the server answers still gets the last answer and the end: a
// close with unread bytes would reset the connection.
func TestShutdown_ReadsWhatItDoesNotAnswer(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	close(stopping)
	s := start(t, func(set *settings) { set.stopping = stopping })
	conn := s.dial(t)
	const requests = 2000
	if _, err := io.WriteString(conn, strings.Repeat("GET /livez HTTP/1.1\r\nHost: h\r\n\r\n", requests)); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	wantAnswers(t, "pipeline", reader, http.StatusOK)
	if rest, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("then %q, %v; want the end", rest, err)
	}
}

// dial opens a connection that the test closes at its end.
func (s *server) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func wantAnswers(t *testing.T, name string, reader *bufio.Reader, want ...int) {
	t.Helper()
	for _, status := range want {
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Errorf("%s: %v, want %d", name, err, status)
			return
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("%s: %d, want %d", name, res.StatusCode, status)
		}
	}
}
