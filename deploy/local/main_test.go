package main

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// session is one `make run`, on ports and a folder of its own. Its tests don't
// run side by side: a child that one forks holds, until it is another program,
// every port that the others only try.
type session struct {
	plan
	out    string // the file that it writes to
	cancel context.CancelFunc
	result chan error
}

func start(t *testing.T, p plan) *session {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s := &session{plan: p, out: out.Name(), cancel: cancel, result: make(chan error, 1)}
	go func() {
		defer out.Close() //nolint:errcheck // a test's
		s.result <- up(ctx, p, out)
		close(s.result)
	}()
	t.Cleanup(func() {
		cancel()
		for range s.result { // until it is closed
		}
	})
	return s
}

func (s *session) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(s.out)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// awaitRunning takes as long as a build of api and worker from nothing.
func (s *session) awaitRunning(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(5 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(s.said(t), "Passbook is running.") {
		select {
		case <-tick.C:
		case err := <-s.result:
			t.Fatalf("it ended: %v\n%s", err, s.said(t))
		case <-deadline.C:
			t.Fatalf("it doesn't run:\n%s", s.said(t))
		}
	}
}

// pid is the process that a program of the session is.
func (s *session) pid(t *testing.T, program string) int {
	t.Helper()
	want, err := filepath.EvalSymlinks(filepath.Join(s.dir, "bin", program))
	if err != nil {
		t.Fatal(err)
	}
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range exes {
		if path, err := os.Readlink(exe); err == nil && path == want {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no %s runs", program)
	return 0
}

// freeAddress is one below the range that the kernel hands out, from which
// other tests take theirs while this one still builds.
func freeAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(20_000)))
		if l, err := lc.Listen(t.Context(), "tcp4", address); err == nil {
			defer l.Close() //nolint:errcheck // a test's
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// testPlan is what `make run` makes of an environment that names three free
// ports.
func testPlan(t *testing.T) plan {
	t.Helper()
	env := map[string]string{
		"HTTP_ADDR":       freeAddress(t),
		"API_OPS_ADDR":    freeAddress(t),
		"WORKER_OPS_ADDR": freeAddress(t),
	}
	p, err := readPlan(func(name string) string { return env[name] }, filepath.Join(t.TempDir(), "local"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := clean(context.WithoutCancel(t.Context()), p.dir); err != nil {
			t.Error(err)
		}
	})
	return p
}
