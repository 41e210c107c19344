package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
)

// A request in flight when the server is told to stop is answered, and its
// connection ends after the answer.
func TestShutdown_AnswersWhatIsInFlight(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	c.get("/livez").want(http.StatusOK) // leaves an idle connection behind

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
		t.Error("the client is not told that the connection ends")
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

// A server that is told to stop before it serves does not begin.
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
