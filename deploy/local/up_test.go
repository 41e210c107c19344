package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The whole life of a `make run`: up, a first request, Ctrl-C, up again, and the death of a program.
func TestUp(t *testing.T) {
	p := testPlan(t)
	keepPrograms(t, p)
	s := start(t, p)
	s.awaitRunning(t)
	if got := signUp(t, s.plan); got != http.StatusCreated {
		t.Errorf("the first request to paste: %d", got)
	}
	s.cancel()
	if err := <-s.result; err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	var stopped []string
	for line := range strings.Lines(s.said(t)) {
		if name, ok := strings.CutPrefix(line, "Stopping "); ok {
			stopped = append(stopped, strings.TrimSuffix(name, ".\n"))
		}
	}
	if want := []string{"api", "worker", "Redis", "Postgres"}; !slices.Equal(stopped, want) {
		t.Errorf("stopped %v; want %v", stopped, want)
	}
	if err := s.checkPorts(t.Context()); err != nil {
		t.Errorf("something is left: %v", err)
	}

	// The next one knows the user. It stops all programs when one ends by itself.
	again := start(t, s.plan)
	again.awaitRunning(t)
	if got := signUp(t, s.plan); got != http.StatusConflict {
		t.Errorf("signing up once more, after a restart: %d", got)
	}
	if err := syscall.Kill(again.pid(t, "worker"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-again.result; err == nil || !strings.Contains(err.Error(), "worker ended by itself") {
		t.Errorf("after the worker's death: %v", err)
	}
	if err := again.checkPorts(t.Context()); err != nil {
		t.Errorf("something is left after the worker's death: %v", err)
	}
}

// keepPrograms has the programs built in a folder that is kept, as testenv.Programs does: the go command
// links again what is not in its place.
func keepPrograms(t *testing.T, p plan) {
	t.Helper()
	kept, err := filepath.Abs("../../.local/tests/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{kept, p.dir} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(kept, filepath.Join(p.dir, "bin")); err != nil {
		t.Fatal(err)
	}
}

func TestUp_NamesEveryTakenPort(t *testing.T) {
	p := testPlan(t)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp4", p.api.value)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	p.workerOps.value = p.apiOps.value
	s := start(t, p)
	err = <-s.result
	if err == nil {
		t.Fatal("it runs on ports that are taken")
	}
	for _, want := range []string{p.api.value, "HTTP_ADDR=", p.workerOps.value, "WORKER_OPS_ADDR="} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q doesn't name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "API_OPS_ADDR=") {
		t.Errorf("%q names a free port", err)
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the folder was made in spite of the error: %v", err)
	}
}

func TestReadPlan_RefusesOneAddressForTwo(t *testing.T) {
	t.Parallel()
	_, err := readPlan(func(name string) string { return map[string]string{"OPS_ADDR": "127.0.0.1:9090"}[name] }, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "API_OPS_ADDR") {
		t.Errorf("OPS_ADDR: %v", err)
	}
}

func TestAnnounce_HidesTheUsersPassword(t *testing.T) {
	t.Parallel()
	s := &stack{}
	for _, address := range []string{"postgres://me:hidden@db.example.com/passbook", "host=db password=hidden"} {
		if said := s.runsOwn("Postgres", "psql ", address, ""); strings.Contains(said, "hidden") {
			t.Errorf("it says %s", said)
		}
	}
}

func TestKeys_AreKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "jwt_keys")
	made, err := keys(path)
	if err != nil || !strings.HasPrefix(made, "local:") {
		t.Fatalf("made %q, %v", made, err)
	}
	if kept, err := keys(path); err != nil || kept != made {
		t.Errorf("kept %q, %v; want %q", kept, err, made)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// signUp sends the first request to paste until it gets another answer than 503: a busy machine may
// have no time for it.
func signUp(t *testing.T, p plan) (status int) {
	t.Helper()
	testenv.Eventually(t, "an answer to the first request", func() bool {
		status = trySignUp(t, p)
		return status != http.StatusServiceUnavailable
	})
	return status
}

func trySignUp(t *testing.T, p plan) int {
	t.Helper()
	body := strings.NewReader(`{"email":"me@example.com","password":"correct horse battery"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.api.url("/v1/users"), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true // a connection kept for later would hold up the stop
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a test's
	return resp.StatusCode
}
