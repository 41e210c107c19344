package testenv

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SilentAddress is an address of this machine that takes no connection and refuses none: connects
// there get no answer, as from a host that is cut off. It is a listener whose backlog is full.
func SilentAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	bound, nameErr := unix.Getsockname(fd)
	at, ok := bound.(*unix.SockaddrInet4)
	if err = errors.Join(err, nameErr); err != nil || !ok {
		t.Fatalf("testenv: listen: %v", err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(at.Port))
	fillBacklog(t, address)
	return address
}

// fillBacklog connects until a connect gets no answer.
func fillBacklog(t testing.TB, address string) {
	t.Helper()
	const backlog, noAnswer = 16, 300 * time.Millisecond
	for range backlog {
		ctx, cancel := context.WithTimeout(t.Context(), noAnswer)
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
		cancel()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatalf("testenv: fill a backlog: %v", err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatalf("testenv: %s takes more than %d connections", address, backlog)
}
