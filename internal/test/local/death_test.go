package local_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestOwnerKilled_TemporaryServersGo(t *testing.T) {
	t.Parallel()
	o := startOwner(t, "")
	pgPID, pgDir := o.server(t)
	redisPID, redisDir := o.server(t)
	o.kill(t)
	awaitEnd(t, pgPID)
	awaitEnd(t, redisPID)
	for _, dir := range []string{pgDir, redisDir} {
		testenv.Eventually(t, dir+" goes", func() bool {
			_, err := os.Stat(dir)
			return os.IsNotExist(err)
		})
	}
}

// The next run doesn't wait for the supervisors of the run before: it starts at
// once, and finds the data.
func TestOwnerKilled_NextRunGoesOn(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	o := startOwner(t, dir)
	pgPID, _ := o.server(t)
	redisPID, _ := o.server(t)
	o.kill(t)
	for name, k := range kinds() {
		mustStart(t, k, filepath.Join(dir, strings.ToLower(name)), nil)
	}
	awaitEnd(t, pgPID)
	awaitEnd(t, redisPID)
}

// Both the owner and the supervisors are killed, so no process stops the servers.
func TestSupervisorKilled_NextRunReclaims(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	o := startOwner(t, dir)
	pgPID, _ := o.server(t)
	redisPID, _ := o.server(t)
	for _, pid := range []int{pgPID, redisPID} {
		// Its supervisor's listener first: it would see the supervisor end, and act.
		for _, other := range supervisorsOf(t, pid) {
			if err := syscall.Kill(other, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	o.kill(t)
	for name, k := range kinds() {
		var said strings.Builder
		mustStart(t, k, filepath.Join(dir, strings.ToLower(name)), func(sentence string) { said.WriteString(sentence) })
		if !strings.Contains(said.String(), "an earlier run left behind") {
			t.Errorf("%s: said %q", name, said.String())
		}
	}
	awaitEnd(t, pgPID)
	awaitEnd(t, redisPID)
}

// supervisorsOf returns the other processes in a server's process group: the listener of
// its supervisor, and then the supervisor, which leads the group.
func supervisorsOf(t *testing.T, pid int) []int {
	t.Helper()
	group, err := syscall.Getpgid(pid)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var others []int
	for _, entry := range entries {
		other, err := strconv.Atoi(entry.Name())
		if err != nil || other == pid || other == group {
			continue
		}
		if g, err := syscall.Getpgid(other); err == nil && g == group {
			others = append(others, other)
		}
	}
	return append(others, group)
}

// The owner dies while initdb works: the next run begins anew.
func TestOwnerKilled_HalfMadeDatabase(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	o := startOwner(t, dir)
	testenv.Eventually(t, "initdb is at work", func() bool {
		begun, _ := filepath.Glob(filepath.Join(dir, "postgres", "data.unfinished-*", "*"))
		return len(begun) > 0
	})
	o.kill(t)
	mustStart(t, postgresKind(), filepath.Join(dir, "postgres"), nil)
}

// The machine died while initdb worked, so no process cleaned up after it.
func TestStart_AfterHalfMadeDatabase(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(dataDir(t), "postgres")
	rest := filepath.Join(dir, "data.unfinished-7")
	if err := os.MkdirAll(rest, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rest, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := mustStart(t, postgresKind(), dir, nil)
	left, err := filepath.Glob(filepath.Join(s.Dir(), "data.unfinished-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// A machine that died leaves postmaster.pid behind, with a number that is
// another process's by now: ours here.
func TestStart_AfterTheMachineDied(t *testing.T) {
	t.Parallel()
	k := postgresKind()
	s := mustStart(t, k, filepath.Join(dataDir(t), "postgres"), nil)
	mustKeep(t, k, s)
	pidFile := filepath.Join(s.Dir(), "data", "postmaster.pid")
	left, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(left), "\n")
	if err := os.WriteFile(pidFile, []byte(itoa(os.Getpid())+"\n"+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRecall(t, k, s)
}
