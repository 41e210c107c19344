package local_test

import (
	"context"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// server is what both kinds have in common.
type server interface {
	MoveTo(port int)
	URL() string
	PID() int
	Dir() string
	Done() <-chan struct{}
	Stop(ctx context.Context) error
	Kill() error
	Restart(ctx context.Context) error
	Remove(ctx context.Context) error
}

// kind is one of the two servers, and how to keep a word in it.
type kind struct {
	start  func(ctx context.Context, dir string, say local.Say) (server, error)
	keep   func(ctx context.Context, url string) error
	recall func(ctx context.Context, url string) (string, error)
}

const word = "still here"

// emptyData is what initdb makes. The copy takes a tenth of its time; the owners that the tests
// kill run initdb itself.
var emptyData = sync.OnceValues(func() (string, error) {
	return local.Template(context.Background(), "", func(context.Context, *local.Postgres) error { return nil })
})

func postgresKind() kind {
	return kind{
		start: func(ctx context.Context, dir string, say local.Say) (server, error) {
			data, err := emptyData()
			if err != nil {
				return nil, err
			}
			// Else a killed server leaves shared memory behind, which the next start on its folder would take away.
			settings := map[string]string{"dynamic_shared_memory_type": "mmap"}
			return local.StartPostgres(ctx, local.PostgresConfig{Dir: dir, Durable: true, Template: data, Settings: settings, Say: say})
		},
		keep: func(ctx context.Context, url string) error {
			return withPostgres(ctx, url, func(conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, `CREATE TABLE kept AS SELECT 'still here' AS word`)
				return err
			})
		},
		recall: func(ctx context.Context, url string) (got string, err error) {
			err = withPostgres(ctx, url, func(conn *pgx.Conn) error {
				return conn.QueryRow(ctx, `SELECT word FROM kept`).Scan(&got)
			})
			return got, err
		},
	}
}

func withPostgres(ctx context.Context, url string, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // a test's
	return do(conn)
}

func redisKind() kind {
	return kind{
		start: func(ctx context.Context, dir string, say local.Say) (server, error) {
			// Flushed at each write: what a crash in the last second costs is
			// Redis's own promise, and no test of ours.
			settings := map[string]string{"appendfsync": "always"}
			return local.StartRedis(ctx, local.RedisConfig{Dir: dir, Durable: true, Settings: settings, Say: say})
		},
		keep: func(ctx context.Context, url string) error {
			return withRedis(url, func(c *redis.Client) error { return c.Set(ctx, "kept", word, 0).Err() })
		},
		recall: func(ctx context.Context, url string) (got string, err error) {
			err = withRedis(url, func(c *redis.Client) error {
				got, err = c.Get(ctx, "kept").Result()
				return err
			})
			return got, err
		},
	}
}

func withRedis(url string, do func(*redis.Client) error) error {
	opt, err := redis.ParseURL(url)
	if err != nil {
		return err
	}
	client := redis.NewClient(opt)
	defer client.Close() //nolint:errcheck // a test's
	return do(client)
}

func kinds() map[string]kind {
	return map[string]kind{"Postgres": postgresKind(), "Redis": redisKind()}
}

// mustStart starts a server that goes, data and all, after the test.
func mustStart(t *testing.T, k kind, dir string, say local.Say) server {
	t.Helper()
	s, err := k.start(t.Context(), dir, say)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if err := local.Remove(context.WithoutCancel(t.Context()), s.Dir()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustKeep(t *testing.T, k kind, s server) {
	t.Helper()
	if err := k.keep(t.Context(), s.URL()); err != nil {
		t.Fatal(err)
	}
}

func mustRecall(t *testing.T, k kind, s server) {
	t.Helper()
	if got, err := k.recall(t.Context(), s.URL()); err != nil || got != word {
		t.Fatalf("kept %q, %v; want %q", got, err, word)
	}
}

func TestData_Outlives(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			address, pid := s.URL(), s.PID()
			mustKeep(t, k, s)

			for _, step := range []struct {
				name string
				do   func() error
			}{
				{"ARestart", func() error { return nil }},
				{"AStop", func() error { return s.Stop(t.Context()) }},
				{"ACrash", s.Kill},
			} {
				if err := step.do(); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if err := s.Restart(t.Context()); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if s.URL() != address || s.PID() == pid {
					t.Fatalf("%s: at %s as process %d; want %s, a process other than %d", step.name, s.URL(), s.PID(), address, pid)
				}
				mustRecall(t, k, s)
			}
		})
	}
}

func TestData_OutlivesTheRun(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(dataDir(t), "data")
			first := mustStart(t, k, dir, nil)
			mustKeep(t, k, first)
			if err := first.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustRecall(t, k, mustStart(t, k, dir, nil))
		})
	}
}

func TestRemove_EndsServerAndData(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := k.start(t.Context(), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			pid := s.PID()
			if err := s.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			awaitEnd(t, pid)
			if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
				t.Errorf("%s is still there: %v", s.Dir(), err)
			}
		})
	}
}

func TestDone_TellsOfACrash(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-s.Done()
		})
	}
}

func TestStop_KillsWhatDoesNotStop(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			mustKeep(t, k, s)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			// A bound that has passed already: it may still stop by itself first.
			if err := s.Stop(ended); err != nil && !strings.Contains(err.Error(), "killed") {
				t.Fatal(err)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustRecall(t, k, s)
		})
	}
}

func TestStart_InUse(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(dataDir(t), "data")
			mustStart(t, k, dir, nil)
			_, err := k.start(t.Context(), dir, nil)
			if err == nil || !strings.Contains(err.Error(), "in use by process") {
				t.Errorf("a second start on the folder: %v", err)
			}
			if err := local.Remove(t.Context(), dir); err == nil {
				t.Error("removed under a running server")
			}
		})
	}
}

// make run prints the URL for redis-cli.
func TestRedis_URLOpensRedisCLI(t *testing.T) {
	said, err := exec.CommandContext(t.Context(), "redis-cli", "-u", testenv.Redis(t), "PING").CombinedOutput()
	if err != nil || !strings.Contains(string(said), "PONG") {
		t.Errorf("%v: %s", err, said)
	}
}

func TestStart_NeedsThePassword(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			address, err := url.Parse(s.URL())
			if err != nil {
				t.Fatal(err)
			}
			address.User = url.UserPassword(address.User.Username(), "wrong")
			if _, err := k.recall(t.Context(), address.String()); err == nil {
				t.Error("a wrong password gets in")
			}
		})
	}
}

func TestStart_ShowsWhatTheServerSaid(t *testing.T) {
	t.Parallel()
	wrong := map[string]string{"no_such_setting": "1"}
	_, err := local.StartPostgres(t.Context(), local.PostgresConfig{Settings: wrong})
	if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
		t.Errorf("postgres: %v", err)
	}
	_, err = local.StartRedis(t.Context(), local.RedisConfig{Settings: wrong})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("redis: %v", err)
	}
}

// The servers are out of the terminal's reach, and root's rights out of theirs.
func TestStart_KeepsItsDistance(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			group, err := syscall.Getpgid(s.PID())
			if err != nil || group == syscall.Getpgrp() {
				t.Errorf("process group %d, %v; want one of its own", group, err)
			}
			info, err := os.Stat(filepath.Join("/proc", itoa(s.PID())))
			if err != nil {
				t.Fatal(err)
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid == 0 {
				t.Errorf("runs as user %d", stat.Uid)
			}
		})
	}
}

// Its clients know the port, so a restart waits for it rather than move.
func TestRestart_WaitsForItsPort(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			mustKeep(t, k, s)
			address, err := url.Parse(s.URL())
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			var lc net.ListenConfig
			squatter, err := lc.Listen(t.Context(), "tcp4", address.Host)
			if err != nil {
				t.Fatal(err)
			}
			restartBehind(t, s, squatter.Close)
			mustRecall(t, k, s)
		})
	}
}

// What answers on its port meanwhile may be another server, which knows the same password if it is a
// copy of the same template.
func TestRestart_WaitsForAnotherServer(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			mustKeep(t, k, s)
			if err := s.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			other := mustStart(t, k, filepath.Join(dataDir(t), "data"), nil)
			s.MoveTo(portOf(t, other))
			restartBehind(t, s, other.Kill) // a stop may take longer than the restart tries
			mustRecall(t, k, s)
		})
	}
}

// restartBehind restarts a server whose port is taken, until release.
func restartBehind(t *testing.T, s server, release func() error) {
	t.Helper()
	restarted := make(chan error, 1)
	go func() { restarted <- s.Restart(t.Context()) }()
	testenv.Eventually(t, "it finds its port taken", func() bool {
		said, _ := os.ReadFile(filepath.Join(s.Dir(), "log"))
		return strings.Contains(string(said), "Address already in use")
	})
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
}

func portOf(t *testing.T, s server) int {
	t.Helper()
	address, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// A folder in a place that only root enters is what a clone under /root is.
// A user other than root keeps the servers under its own name, and nothing moves.
func TestStart_WhereOnlyRootGoes(t *testing.T) {
	t.Parallel()
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			closed := filepath.Join(dataDir(t), "closed")
			if err := os.Mkdir(closed, 0o700); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(closed, "data")
			var said strings.Builder
			first := mustStart(t, k, dir, func(sentence string) { said.WriteString(sentence) })
			mustKeep(t, k, first)
			wantDir := dir
			if os.Getuid() == 0 {
				wantDir = first.Dir()
				if !strings.HasPrefix(wantDir, "/var/lib/passbook-") || !strings.Contains(said.String(), wantDir) {
					t.Errorf("the data is in %s; said: %s", wantDir, said.String())
				}
			}
			if err := first.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			second := mustStart(t, k, dir, nil)
			mustRecall(t, k, second)
			if second.Dir() != wantDir {
				t.Errorf("the data moved from %s to %s", wantDir, second.Dir())
			}
			if err := second.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := local.Remove(t.Context(), dir); err != nil {
				t.Error(err)
			}
			for _, path := range []string{dir, wantDir} {
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
		})
	}
}

func TestRedis_NotDurableComesBackEmpty(t *testing.T) {
	t.Parallel()
	s, err := local.StartRedis(t.Context(), local.RedisConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Remove(context.WithoutCancel(t.Context())) //nolint:errcheck // a test's
	k := redisKind()
	mustKeep(t, k, s)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := k.recall(t.Context(), s.URL()); err == nil {
		t.Errorf("it still knows %q", got)
	}
}
