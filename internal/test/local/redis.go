package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// RedisConfig says where a private Redis keeps its data, and if it does.
type RedisConfig struct {
	// Dir is kept between runs. Empty is a temporary one, which goes with
	// Remove, or with us.
	Dir string
	// Durable writes a log of every change, flushed each second; without it a
	// restart comes back empty.
	Durable bool
	// Password is what the server asks for, and what it says to its master; empty for one of its
	// own.
	Password string
	// Cluster makes it a node of a cluster, which is a cluster of its own at first.
	Cluster bool
	// Sentinel makes it a Sentinel, which watches nothing at first.
	Sentinel bool
	// Settings go on top of ours, written as in redis.conf.
	Settings map[string]string
	// Host is where it runs; nil is here.
	Host *Host
	// Say may be nil.
	Say Say
}

// Redis is a private Redis server.
type Redis struct {
	instance
	cfg      RedisConfig
	bin      string
	password string
	busPort  int // of a cluster's node; 0 until the first start
}

// StartRedis starts a private Redis and returns when it answers.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	f, err := openFolder(ctx, cfg.Dir, cfg.Durable, cfg.Say)
	if err != nil {
		return nil, fmt.Errorf("start redis: %w", err)
	}
	r := &Redis{cfg: cfg}
	r.instance = instance{
		name: "redis", folder: f, host: cfg.Host, pidFile: "data/redis.pid", say: cfg.Say,
		stopSignal: syscall.SIGTERM,
		killSignal: syscall.SIGKILL,
		prepare:    r.prepare,
		command:    r.command,
		ping:       r.ping,
	}
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(err, f.abandon())
	}
	return r, nil
}

// URL is the server's database 0.
func (r *Redis) URL() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := url.URL{
		Scheme: "redis",
		User:   url.UserPassword("default", r.password), // Debian's redis-cli takes none for a user called ""
		Host:   net.JoinHostPort(r.host.address(), strconv.Itoa(r.port)),
		Path:   "/0",
	}
	return u.String()
}

// ping speaks to Redis by hand: a client would bring a pool along, whose
// goroutines outlive a server that doesn't answer yet.
func (r *Redis) ping(ctx context.Context, port int) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort(r.host.address(), strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it has said what it had to
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(conn, "AUTH %s\r\nINFO server\r\nPING\r\n", r.password); err != nil {
		return err
	}
	return readPong(bufio.NewReader(conn), filepath.Join(r.folder.path, configFile))
}

// readPong reads the answers to AUTH, INFO and PING. The server must have been started with config:
// the nodes of a cluster have the same password. While Redis still reads its data the answer to PING
// is -LOADING.
func readPong(answers *bufio.Reader, config string) error {
	auth, err := answers.ReadString('\n')
	if err != nil {
		return err
	}
	if auth != "+OK\r\n" {
		return fmt.Errorf("%w: %s", errStrange, strings.TrimSpace(auth))
	}
	info, err := readBulk(answers)
	if err != nil {
		return err
	}
	if !strings.Contains(info, "\r\nconfig_file:"+config+"\r\n") {
		return fmt.Errorf("%w: it was started with another configuration than %s", errStrange, config)
	}
	pong, err := answers.ReadString('\n')
	if err != nil {
		return err
	}
	if pong != "+PONG\r\n" {
		return errors.New(strings.TrimSpace(pong))
	}
	return nil
}

// readBulk reads a string that its length stands before.
func readBulk(answers *bufio.Reader) (string, error) {
	header, err := answers.ReadString('\n')
	if err != nil {
		return "", err
	}
	length, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(header, "$")))
	if err != nil {
		return "", errors.New(strings.TrimSpace(header))
	}
	text := make([]byte, length+len("\r\n"))
	_, err = io.ReadFull(answers, text)
	return string(text), err
}

func (r *Redis) prepare(context.Context) (err error) {
	if r.bin, err = findRedis(); err != nil {
		return err
	}
	if r.password = r.cfg.Password; r.password == "" {
		if r.password, err = r.folder.password(); err != nil {
			return err
		}
	}
	return r.folder.makeData()
}

// command writes the settings to a file, because a command line, which every
// user of the machine can read, is no place for the password.
func (r *Redis) command(port int) ([]string, error) {
	settings := map[string]string{
		"bind":        r.host.address(),
		"port":        strconv.Itoa(port),
		"dir":         strconv.Quote(r.folder.dataPath()),
		"pidfile":     strconv.Quote(filepath.Join(r.folder.dataPath(), "redis.pid")),
		"requirepass": strconv.Quote(r.password),
		"daemonize":   "no",
	}
	command := []string{r.bin, filepath.Join(r.folder.path, configFile)}
	if r.cfg.Sentinel {
		command = append(command, "--sentinel")
	} else if err := r.setData(settings); err != nil {
		return nil, err
	}
	maps.Copy(settings, r.cfg.Settings)
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s %s\n", name, settings[name])
	}
	return command, r.folder.write(configFile, conf.String())
}

// configFile is where the settings are. A Sentinel writes what it learns there too.
const configFile = "data/redis.conf"

// setData sets what a server that holds data needs.
func (r *Redis) setData(settings map[string]string) (err error) {
	settings["masterauth"] = strconv.Quote(r.password)
	settings["save"], settings["appendonly"] = `""`, "no"
	if r.cfg.Durable {
		settings["appendonly"], settings["appendfsync"] = "yes", "everysec"
	}
	if !r.cfg.Cluster {
		return nil
	}
	if r.busPort == 0 {
		if r.busPort, err = freePort(context.Background()); err != nil {
			return err
		}
	}
	settings["cluster-enabled"], settings["cluster-port"] = "yes", strconv.Itoa(r.busPort)
	settings["cluster-node-timeout"] = "1000" // milliseconds
	return nil
}
