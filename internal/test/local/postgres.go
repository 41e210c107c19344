package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	postgresUser = "passbook"
	unfinished   = "data.unfinished-" // data that is still being made, or was when its maker was killed
)

// On a Host the servers and clients of its network may connect. With md5 Postgres asks for SCRAM
// where the password is kept for that; a template's is not.
const (
	hostsFile  = "pg_hba.conf"
	hostsRules = "host all,replication all samenet md5\n"
)

// PostgresConfig says where a private Postgres keeps its data, and how well.
type PostgresConfig struct {
	// Dir is kept between runs. Empty is a temporary one, which goes with
	// Remove, or with us.
	Dir string
	// Durable data survives a crash of the machine; without it only one of the
	// server, and a commit waits for no disk.
	Durable bool
	// Template is a folder that Template returned, to copy in the place of initdb.
	Template string
	// Settings go on top of ours; an empty one takes ours away.
	Settings map[string]string
	// Host is where it runs; nil is here.
	Host *Host
	// Say may be nil.
	Say Say
}

// Postgres is a private Postgres server.
type Postgres struct {
	instance
	cfg           PostgresConfig
	bin           string // the folder of its binaries
	password      string
	initdbOptions []string
	fill          func(ctx context.Context, dir string) error // makes the data in dir
}

// StartPostgres starts a private Postgres and returns when it answers. The
// first start on a folder makes its data, which takes a second or two.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	pg, err := newPostgres(ctx, cfg)
	if err != nil {
		return nil, err
	}
	pg.fill = pg.initdb
	if cfg.Template != "" {
		pg.fill = pg.copyTemplate
	}
	if err := pg.start(ctx); err != nil {
		return nil, errors.Join(err, pg.folder.abandon())
	}
	return pg, nil
}

func newPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	f, err := openFolder(ctx, cfg.Dir, cfg.Durable, cfg.Say)
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	pg := &Postgres{cfg: cfg, initdbOptions: []string{"--auth=scram-sha-256"}}
	pg.instance = instance{
		name: "postgres", folder: f, host: cfg.Host, pidFile: "data/postmaster.pid", say: cfg.Say,
		stopSignal: syscall.SIGINT, // "fast": open transactions roll back, a checkpoint is written
		killSignal: syscall.SIGQUIT,
		prepare:    pg.prepare,
		command:    pg.command,
		ping:       pg.ping,
	}
	return pg, nil
}

// URL is the server's own database, for its superuser.
func (pg *Postgres) URL() string {
	pg.mu.Lock()
	defer pg.mu.Unlock()
	return pg.url(pg.port)
}

// Bin is the folder of the server's binaries.
func (pg *Postgres) Bin() string { return pg.bin }

// Program is the path of a program of Postgres, as psql or pgbench. Where the server's own package has
// none, it is that of the newest version of the machine, because pg_dump and pg_basebackup must not be
// older than the server.
func (pg *Postgres) Program(name string) string {
	own := filepath.Join(pg.bin, name)
	if _, err := os.Stat(own); err == nil {
		return own
	}
	others, _ := filepath.Glob(filepath.Join(debianBin, name)) // in order; fails on a bad pattern only
	if len(others) == 0 {
		return own // the caller's error says that it is missing
	}
	return others[len(others)-1]
}

func (pg *Postgres) url(port int) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(postgresUser, pg.password),
		Host:     net.JoinHostPort(pg.host.address(), strconv.Itoa(port)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// ping asks for the folder too: all copies of a template have the same password.
func (pg *Postgres) ping(ctx context.Context, port int) error {
	conn, err := pgx.Connect(ctx, pg.url(port))
	if err != nil {
		if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "28P01" { // invalid_password
			return fmt.Errorf("%w: %w", errStrange, err)
		}
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // it has been asked
	var folder string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&folder); err != nil {
		return err
	}
	if folder != pg.folder.dataPath() {
		return fmt.Errorf("%w: its data is in %s", errStrange, folder)
	}
	return nil
}

func (pg *Postgres) command(port int) ([]string, error) {
	settings := map[string]string{
		"listen_addresses":        pg.host.address(),
		"unix_socket_directories": "",
		"max_connections":         "200",
		"shared_buffers":          "256MB",
		"max_wal_size":            "2GB",
		"jit":                     "off", // our statements end before it would pay
		"timezone":                "UTC",
		"synchronous_commit":      "on", // the promise behind a 202; what it waits for is fsync's
	}
	if !pg.cfg.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
		settings["wal_init_zero"] = "off"  // no zeros for each new segment
		settings["wal_keep_size"] = "64MB" // else a checkpoint removes segments, of 1 MB, that a standby still needs: it has no slot
		settings["shared_buffers"] = "64MB"
		settings["max_wal_size"] = "256MB"              // the data may be in memory
		settings["dynamic_shared_memory_type"] = "mmap" // in the folder, so it is deleted even after a kill
	}
	if pg.host != nil {
		settings["hba_file"] = filepath.Join(pg.folder.path, hostsFile)
		if err := pg.folder.write(hostsFile, hostsRules); err != nil {
			return nil, err
		}
	}
	maps.Copy(settings, pg.cfg.Settings)
	maps.DeleteFunc(settings, func(name, value string) bool {
		given, there := pg.cfg.Settings[name]
		return there && given == ""
	})
	command := []string{filepath.Join(pg.bin, "postgres"), "-D", pg.folder.dataPath(), "-p", strconv.Itoa(port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		command = append(command, "-c", name+"="+settings[name])
	}
	return command, nil
}

// prepare makes the data where there is none yet. That is done beside data/,
// and a rename makes the work count: one that was killed half-way leaves nothing
// that the next start takes for a database.
func (pg *Postgres) prepare(ctx context.Context) (err error) {
	if pg.bin, err = findPostgres(ctx, pg.folder); err != nil {
		return err
	}
	if pg.password, err = pg.folder.password(); err != nil {
		return err
	}
	_, err = pg.folder.root.Stat("data")
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pg.folder.clear(unfinished)
	pg.say.f("Making a Postgres database in %s.", pg.folder.path)
	next := unfinished + strconv.Itoa(os.Getpid())
	if err := pg.fill(ctx, filepath.Join(pg.folder.path, next)); err != nil {
		return err
	}
	return pg.folder.root.Rename(next, "data")
}

func (pg *Postgres) initdb(ctx context.Context, dir string) error {
	command := append(pg.initdbCommand(dir), "--pwfile="+filepath.Join(pg.folder.path, "password"))
	if !pg.cfg.Durable {
		command = append(command, "--no-sync")
	}
	return pg.run(ctx, command)
}

// initdbCommand leaves out the password, and what does not change the data.
func (pg *Postgres) initdbCommand(dir string) []string {
	return append([]string{
		filepath.Join(pg.bin, "initdb"), "--pgdata=" + dir, "--username=" + postgresUser,
		"--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions",
	}, pg.initdbOptions...)
}

// run runs a command that ends by itself, as the folder's owner.
func (pg *Postgres) run(ctx context.Context, command []string) error {
	log, err := pg.folder.openLog()
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the command wrote to its own copy
	p, err := pg.folder.start(ctx, pg.host, log.File, syscall.SIGTERM, command)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.end(context.WithoutCancel(ctx), syscall.SIGTERM, syscall.SIGKILL))
	}
	if p.err != nil {
		return &startError{cause: fmt.Errorf("%s: %w", filepath.Base(command[0]), p.err), path: log.Name(), said: log.tail()}
	}
	return nil
}

// clear removes what stands in the folder under a name that begins so. What
// doesn't go, because an initdb that is just being stopped still writes to it,
// stays for the next start to clear.
func (f *folder) clear(prefix string) {
	entries, _ := fs.ReadDir(f.root.FS(), ".")
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix) {
			_ = f.root.RemoveAll(entry.Name())
		}
	}
}
