package api

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/test/testenv"
)

const livez = "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"

// At a bound a new connection takes the place of the one that has been idle for longest,
// and of none that still has an answer to get.
func TestListener_PrefersTheNew(t *testing.T) {
	t.Parallel()
	for name, bounds := range map[string]func(*settings){
		"Total":   func(set *settings) { set.total = 4 },
		"Address": func(set *settings) { set.address = 4 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, bounds)
			var conns []net.Conn
			for range 12 {
				conn := s.dial(t)
				ask(t, conn, livez, http.StatusOK)
				conns = append(conns, conn)
				testenv.Eventually(t, "the connection is idle for the server too", func() bool {
					connections, _, waiting := s.connections()
					return connections == min(len(conns), 4) && waiting == connections
				})
			}
			for i, conn := range conns {
				if i < 8 {
					wantEnd(t, conn)
				} else {
					ask(t, conn, livez, http.StatusOK)
				}
			}
			silent := make([]net.Conn, 40)
			for i := range silent {
				silent[i] = s.dial(t)
			}
			ask(t, s.dial(t), livez, http.StatusOK)
		})
	}
}

// Where every connection has an answer to get, a new one is closed, and those get their
// answers. Another address is not concerned.
func TestListener_KeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := start(t, func(set *settings) {
		set.address = 4
		set.edit = func(a *API) {
			a.app.Get("/wait", func(c *fiber.Ctx) error {
				<-release
				return c.SendStatus(http.StatusOK)
			})
		}
	})
	var conns []net.Conn
	for range 4 {
		conn := s.dial(t)
		if _, err := io.WriteString(conn, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	testenv.Eventually(t, "four requests are in hand", func() bool {
		connections, _, waiting := s.connections()
		return connections == len(conns) && waiting == 0
	})
	for range 3 {
		wantEnd(t, s.dial(t))
	}
	ask(t, s.dialFrom(t, "127.0.0.2"), livez, http.StatusOK)
	close(release)
	for _, conn := range conns {
		wantAnswers(t, "in hand", bufio.NewReader(conn), http.StatusOK)
	}
	ask(t, s.dial(t), livez, http.StatusOK)
	if lines := s.log.lines("too many connections"); len(lines) != 1 {
		t.Errorf("the log has %d lines, want 1 in ten seconds", len(lines))
	}
}

// A shortage is logged also where the log has just said that there are too many connections.
func TestListener_SaysShortage(t *testing.T) {
	t.Parallel()
	var log logBuffer
	a := &API{cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	l := a.newListener(&failing{errs: []error{syscall.EMFILE, net.ErrClosed}})
	l.logs.Do(func() {}) // the line about too many connections
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
	if lines := log.lines("accept failed", syscall.EMFILE.Error()); len(lines) != 1 {
		t.Errorf("the log has %d lines, want 1", len(lines))
	}
}

// failing is a listener that has an error for each call.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

// The listener forgets a connection that its client closes.
func TestListener_Forgets(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i := range 50 {
		conn := s.dial(t)
		switch i % 3 {
		case 0:
			ask(t, conn, livez, http.StatusOK)
		case 1:
			ask(t, conn, "GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", http.StatusOK)
		}
		_ = conn.Close()
	}
	testenv.Eventually(t, "no connection is known", func() bool {
		connections, addresses, waiting := s.connections()
		return connections == 0 && addresses == 0 && waiting == 0
	})
}

// connections counts what the server has, and how many of it are idle.
func (s *server) connections() (connections, addresses, waiting int) {
	s.api.mu.Lock()
	l := s.api.listener
	s.api.mu.Unlock()
	if l == nil { // it does not serve yet
		return 0, 0, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns), len(l.addresses), l.waiting.Len()
}

// dialFrom is dial from an address of this machine.
func (s *server) dialFrom(t *testing.T, address string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func ask(t *testing.T, conn net.Conn, request string, status int) {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Errorf("%v, want %d", err, status)
		return
	}
	wantAnswers(t, "asked", bufio.NewReader(conn), status)
}

// wantEnd fails the test unless the server has closed the connection without an answer.
func wantEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(stopWait)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v; want the end", n, err)
	}
}
