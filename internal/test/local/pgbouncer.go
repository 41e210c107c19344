package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// PgBouncerConfig says which server a private PgBouncer stands before, and how.
type PgBouncerConfig struct {
	Server *Postgres
	// ServerConns is how many connections to the server all clients of a user and a database share.
	ServerConns int
	// Users are those who may connect beside the server's superuser, and their passwords.
	Users map[string]string
	// Settings go on top of ours, written as in pgbouncer.ini.
	Settings map[string]string
}

// PgBouncer is a private PgBouncer in transaction mode.
type PgBouncer struct {
	instance
	cfg PgBouncerConfig
	bin string
}

// StartPgBouncer starts a private PgBouncer and returns when it answers. Its clients' user and password
// are those of the server.
func StartPgBouncer(ctx context.Context, cfg PgBouncerConfig) (*PgBouncer, error) {
	f, err := openFolder(ctx, "", false, nil)
	if err != nil {
		return nil, fmt.Errorf("start pgbouncer: %w", err)
	}
	b := &PgBouncer{cfg: cfg}
	b.instance = instance{
		name: "pgbouncer", folder: f, pidFile: "data/pgbouncer.pid",
		stopSignal: syscall.SIGTERM, // it closes all connections at once
		killSignal: syscall.SIGKILL,
		prepare:    b.prepare,
		command:    b.command,
		ping:       b.ping,
	}
	if err := b.start(ctx); err != nil {
		return nil, errors.Join(err, f.abandon())
	}
	return b, nil
}

// URL is that of the server, through PgBouncer.
func (b *PgBouncer) URL() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.url(b.port, strings.TrimPrefix(b.server().Path, "/"))
}

// Console is the URL of PgBouncer's own database, which takes commands as simple queries.
func (b *PgBouncer) Console() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.url(b.port, "pgbouncer")
}

func (b *PgBouncer) url(port int, database string) string {
	u := b.server()
	u.Host, u.Path = net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "/"+database
	return u.String()
}

func (b *PgBouncer) server() *url.URL {
	u, err := url.Parse(b.cfg.Server.URL())
	if err != nil {
		panic(err) // a URL of this package
	}
	return u
}

func (b *PgBouncer) ping(ctx context.Context, port int) error {
	conn, err := pgx.Connect(ctx, b.url(port, "pgbouncer"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (b *PgBouncer) prepare(context.Context) (err error) {
	if b.bin, err = exec.LookPath("pgbouncer"); err != nil {
		if b.bin, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil { // not in the PATH of every user
			return fmt.Errorf("no pgbouncer; install one: apt-get install pgbouncer (%w)", err)
		}
	}
	return b.folder.makeData()
}

// command writes the settings and the passwords to files.
func (b *PgBouncer) command(port int) ([]string, error) {
	server := b.server()
	password, _ := server.User.Password()
	users := map[string]string{server.User.Username(): password}
	maps.Copy(users, b.cfg.Users)
	var list strings.Builder
	for _, name := range slices.Sorted(maps.Keys(users)) {
		fmt.Fprintf(&list, "%q %q\n", name, users[name])
	}
	settings := map[string]string{
		"listen_addr":       "127.0.0.1",
		"listen_port":       strconv.Itoa(port),
		"unix_socket_dir":   "",
		"pool_mode":         "transaction",
		"default_pool_size": strconv.Itoa(b.cfg.ServerConns),
		"max_client_conn":   "1000",
		"auth_type":         "md5",
		"auth_file":         filepath.Join(b.folder.dataPath(), "userlist.txt"),
		"admin_users":       server.User.Username(),
		"pidfile":           filepath.Join(b.folder.dataPath(), "pgbouncer.pid"),
		// A server that is back is found at once: the default is to try every 15 s.
		"server_login_retry": "0.1",
	}
	maps.Copy(settings, b.cfg.Settings)
	var ini strings.Builder
	fmt.Fprintf(&ini, "[databases]\n* = host=%s port=%s\n[pgbouncer]\n", server.Hostname(), server.Port())
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&ini, "%s = %s\n", name, settings[name])
	}
	err := errors.Join(b.folder.write("data/userlist.txt", list.String()), b.folder.write("data/pgbouncer.ini", ini.String()))
	return []string{b.bin, filepath.Join(b.folder.dataPath(), "pgbouncer.ini")}, err
}
