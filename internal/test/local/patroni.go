package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// PatroniConfig is one of the servers that Patroni runs together.
type PatroniConfig struct {
	Name     string
	File     string // Patroni's configuration; what differs from node to node is in its environment
	Etcd     []*Etcd
	Password string // of Postgres's superuser and of replication, the same on all nodes
}

// Patroni is a Postgres server that Patroni starts, promotes and makes a standby.
type Patroni struct {
	instance
	cfg  PatroniConfig
	bin  string
	rest int // the port of Patroni's own API
}

// StartPatroni starts a node and returns when its Postgres runs. The first node makes the data; a
// later one copies them.
func StartPatroni(ctx context.Context, cfg PatroniConfig) (*Patroni, error) {
	f, err := openFolder(ctx, "", false, nil)
	if err != nil {
		return nil, fmt.Errorf("start patroni: %w", err)
	}
	p := &Patroni{cfg: cfg}
	p.instance = instance{
		name: "patroni", folder: f, pidFile: "data/postmaster.pid",
		stopSignal: syscall.SIGTERM, // Patroni stops Postgres in order
		killSignal: syscall.SIGKILL, // Postgres goes on
		prepare:    p.prepare,
		command:    p.command,
		ping:       func(ctx context.Context, _ int) error { return get(ctx, p.rest, "/health") },
	}
	if p.rest, err = freePort(ctx); err == nil {
		err = p.start(ctx)
	}
	if err != nil {
		_ = p.KillPostgres() // Patroni may have started it; an error says that it has not
		return nil, errors.Join(err, f.abandon())
	}
	return p, nil
}

// URL is the node's Postgres, for its superuser.
func (p *Patroni) URL() string {
	return (&Postgres{password: p.cfg.Password}).url(p.port)
}

// Is returns whether Patroni says that the node is that: "primary", "replica" or "sync", the replica
// that has all that the primary acknowledged.
func (p *Patroni) Is(ctx context.Context, role string) bool { return get(ctx, p.rest, "/"+role) == nil }

// KillPostgres ends the node's Postgres with SIGKILL. Patroni lives.
func (p *Patroni) KillPostgres() error {
	pid, err := p.folder.readPID(p.pidFile)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL) // its other processes end when they find it dead
}

// KillAll ends Patroni and Postgres with SIGKILL, as the host's death does. Restart starts Patroni
// again.
func (p *Patroni) KillAll() error {
	return errors.Join(p.Kill(), p.KillPostgres())
}

func (p *Patroni) prepare(ctx context.Context) (err error) {
	if p.bin, err = findPostgres(ctx, p.folder); err != nil {
		return err
	}
	text, err := os.ReadFile(p.cfg.File)
	if err != nil {
		return err
	}
	return p.folder.write("patroni.yml", string(text))
}

func (p *Patroni) command(port int) ([]string, error) {
	hosts := make([]string, len(p.cfg.Etcd))
	for n, e := range p.cfg.Etcd {
		hosts[n] = e.Address()
	}
	rest, postgres := "127.0.0.1:"+strconv.Itoa(p.rest), "127.0.0.1:"+strconv.Itoa(port)
	p.folder.env = []string{
		"PATRONI_NAME=" + p.cfg.Name,
		"PATRONI_ETCD3_HOSTS=" + strings.Join(hosts, ","),
		"PATRONI_RESTAPI_LISTEN=" + rest, "PATRONI_RESTAPI_CONNECT_ADDRESS=" + rest,
		"PATRONI_POSTGRESQL_LISTEN=" + postgres, "PATRONI_POSTGRESQL_CONNECT_ADDRESS=" + postgres,
		"PATRONI_POSTGRESQL_DATA_DIR=" + p.folder.dataPath(), "PATRONI_POSTGRESQL_BIN_DIR=" + p.bin,
		"PATRONI_POSTGRESQL_PGPASS=" + filepath.Join(p.folder.path, "pgpass"),
		"PATRONI_SUPERUSER_USERNAME=" + postgresUser, "PATRONI_SUPERUSER_PASSWORD=" + p.cfg.Password,
		"PATRONI_REPLICATION_USERNAME=replication", "PATRONI_REPLICATION_PASSWORD=" + p.cfg.Password,
	}
	return []string{"patroni", filepath.Join(p.folder.path, "patroni.yml")}, nil
}

// get asks a server of this machine, and returns an error for any status but 200.
func get(ctx context.Context, port int, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port)+path, nil)
	if err != nil {
		return err
	}
	req.Close = true // no connection outlives the call
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("%s answers %s", path, resp.Status), resp.Body.Close())
	}
	return resp.Body.Close()
}
