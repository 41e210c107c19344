package local_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// ownerVariable turns the test binary into an owner of servers, for tests to
// kill. Its value is the folder to start them under; empty is a temporary one.
const ownerVariable = "LOCAL_TEST_OWNER"

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv(ownerVariable); ok {
		if err := own(context.Background(), dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	local.KeepInMemory()
	goleak.VerifyTestMain(m)
}

// own starts both servers, says a line for each, and lives until its input
// ends or it is killed.
func own(ctx context.Context, dir string) error {
	pg, err := local.StartPostgres(ctx, local.PostgresConfig{Dir: under(dir, "postgres")})
	if err != nil {
		return err
	}
	fmt.Println(pg.PID(), pg.Dir())
	r, err := local.StartRedis(ctx, local.RedisConfig{Dir: under(dir, "redis"), Durable: true})
	if err != nil {
		return err
	}
	fmt.Println(r.PID(), r.Dir())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func under(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// owner is a process that runs own.
type owner struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func startOwner(t *testing.T, dir string) *owner {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), ownerVariable+"="+dir)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // ends with us, and the owner with it
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &owner{cmd: cmd, out: bufio.NewReader(out)}
}

// server is what the owner says of the next server that it started.
func (o *owner) server(t *testing.T) (pid int, dir string) {
	t.Helper()
	line, err := o.out.ReadString('\n')
	if err != nil {
		t.Fatalf("owner: %q: %v", line, err)
	}
	number, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
	if pid, err = strconv.Atoi(number); err != nil {
		t.Fatalf("owner: %q", line)
	}
	return pid, dir
}

// kill is what no process can do anything about.
func (o *owner) kill(t *testing.T) {
	t.Helper()
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = o.cmd.Wait() // "signal: killed"
}

func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	testenv.Eventually(t, fmt.Sprintf("process %d ends", pid), func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

// dataDir is a folder for instances, which the servers' user reaches.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
