package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/passbook/passbook/internal/test/testenv"
)

// An API that has no file descriptor left for another connection tries again until it has,
// and the API serves the clients that waited.
func TestOutOfFileDescriptors(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	api := start(t, "api", s.env())
	pid := api.cmd.Process.Pid
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	const spare, clients = 20, 60
	few := uint64(len(open) + spare)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: few}, nil); err != nil {
		t.Fatal(err)
	}
	var idle []net.Conn
	closeIdle := func() {
		for _, conn := range idle {
			_ = conn.Close()
		}
	}
	defer func() { closeIdle() }()
	for range clients {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", api.addr)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	testenv.Eventually(t, "the API says that it can accept no more", func() bool {
		return strings.Contains(api.log(), "accept failed; trying again") || isClosed(api.done)
	})
	closeIdle()
	if status, body := get(t, "http://"+api.addr+"/readyz"); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	api.stop()
}
