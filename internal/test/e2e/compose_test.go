//go:build deploy

package e2e_test

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The image and the services of deploy/compose.yaml, as far as they run without Docker: the
// programs that the Dockerfile's commands build, as its user, on a root that they can't write to,
// with the environment, secrets, roles, Redis and proxy of the compose file. Clients notice nothing
// while an API stops.
func TestDeployedByCompose(t *testing.T) {
	file := readDockerfile(t)
	programs := file.buildTwice(t)
	c := newComposed(t, file, programs)
	c.s.apis = []*process{c.start("api"), c.start("api")}
	c.s.workers = []*process{c.start("worker"), c.start("worker")}
	c.s.front = c.proxy()
	testenv.Eventually(t, "the proxy has an API", func() bool {
		status, _ := get(t, c.s.front+"/livez")
		return status == http.StatusOK
	})
	client := newSignedUpClient(t, c.s)
	account := client.open(100)

	var answered atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for n := range 4 {
		load.Go(func() {
			for i := 0; !isClosed(stop); i++ {
				request := jobRequest{account.Number, "deposits", 1, fmt.Sprintf("%d-%d", n, i)}
				if status, answer, err := client.send(t.Context(), 0, request); err != nil || status != http.StatusAccepted {
					t.Errorf("while an API stops: %d %s %v", status, answer, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	moreAnswers := func(when string) {
		before := answered.Load()
		testenv.Eventually(t, "answers "+when, func() bool { return answered.Load() > before+20 })
	}
	moreAnswers("of two APIs")
	c.s.apis[0].stop()
	moreAnswers("of one API")
	close(stop)
	load.Wait()
	c.s.apis[1].stop()
	c.s.workers[0].stop()
	c.s.drained()
	c.operate("verify")
	c.operate("accounts", "freeze", account.Number, "--reason", "a test", "--by", "ann")
	c.s.workers[1].stop()
}

// composed is the services of deploy/compose.yaml on this machine.
type composed struct {
	t        *testing.T
	s        *system
	image    container
	services map[string]service
	secrets  string // the folder
}

type service struct {
	Command     []string          `yaml:"command"`
	Entrypoint  []string          `yaml:"entrypoint"`
	Environment map[string]string `yaml:"environment"`
	HealthCheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
}

func newComposed(t *testing.T, file dockerfile, programs string) *composed {
	t.Helper()
	c := &composed{t: t, s: &system{t: t, postgres: testenv.EmptyPostgresServer(t)}}
	var compose struct {
		Services map[string]service `yaml:"services"`
	}
	text := readFile(t, filepath.Join(repository, "deploy", "compose.yaml"))
	if err := yaml.UnmarshalWithOptions(text, &compose, yaml.AllowDuplicateMapKey()); err != nil { // a service overrides what it merges
		t.Fatal(err)
	}
	c.services = compose.Services
	c.makeSecrets()
	c.s.pool = c.s.connect()
	if _, err := c.s.pool.Exec(t.Context(), `CREATE DATABASE passbook`); err != nil {
		t.Fatal(err)
	}
	c.s.databaseURL = databaseURL(t, c.s.postgres.URL(), "passbook") // the superuser's
	c.s.pool = c.s.connect()
	c.image = newContainer(t, file, programs, c.secrets)

	c.grant() // the service roles
	migrate := c.begin("migrate")
	if err := migrate.wait(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, migrate.log())
	}
	c.grant() // the service grants
	return c
}

// makeSecrets runs secrets.sh, and puts the addresses of the test's stores in place of the
// services' names.
func (c *composed) makeSecrets() {
	c.t.Helper()
	dir := c.t.TempDir()
	copyInto(c.t, filepath.Join(repository, "deploy", "compose", "secrets.sh"), dir)
	command(c.t, filepath.Join(dir, "secrets.sh"))
	c.secrets = filepath.Join(dir, "secrets")
	kept := readFile(c.t, filepath.Join(c.secrets, "jwt_keys"))
	command(c.t, filepath.Join(dir, "secrets.sh"))
	if string(readFile(c.t, filepath.Join(c.secrets, "jwt_keys"))) != string(kept) {
		c.t.Error("secrets.sh makes keys again that are there")
	}
	server, err := url.Parse(c.s.postgres.URL())
	if err != nil {
		c.t.Fatal(err)
	}
	addresses := strings.NewReplacer("@postgres:5432/", "@"+server.Host+"/", "@redis:6379/", "@"+c.startRedis()+"/")
	for _, name := range []string{"owner_database_url", "database_url", "operator_database_url", "redis_url"} {
		path := filepath.Join(c.secrets, name)
		text := addresses.Replace(string(readFile(c.t, path)))
		if err := os.Remove(path); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o444); err != nil {
			c.t.Fatal(err)
		}
	}
}

// startRedis starts Redis with the service's configuration and users.
func (c *composed) startRedis() (address string) {
	c.t.Helper()
	address = freeAddress(c.t)
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.Command("redis-server", filepath.Join(repository, "deploy", "compose", "redis.conf"), "--bind", "127.0.0.1", "--port", port, //nolint:noctx // the test's end kills it
		"--dir", c.t.TempDir(), "--aclfile", filepath.Join(c.secrets, "redis_users"))
	redisServer := beginCommand(c.t, "redis-server", cmd)
	options, err := redis.ParseURL("redis://passbook:" + strings.TrimSpace(string(readFile(c.t, filepath.Join(c.secrets, "redis_password")))) + "@" + address)
	if err != nil {
		c.t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close() //nolint:errcheck // a test's
	testenv.Eventually(c.t, "Redis answers "+redisServer.log(), func() bool { return client.Ping(c.t.Context()).Err() == nil })
	for name, want := range map[string]string{"maxmemory-policy": "noeviction", "appendonly": "yes"} {
		if got := client.ConfigGet(c.t.Context(), name).Val()[name]; got != want {
			c.t.Errorf("%s is %s", name, got)
		}
	}
	health := redis.NewClient(&redis.Options{Addr: address, Username: "health", Password: "health", DisableIdentity: true})
	defer health.Close() //nolint:errcheck // a test's
	if err := health.Ping(c.t.Context()).Err(); err != nil {
		c.t.Errorf("the health check of Redis: %v", err)
	}
	if err := health.Keys(c.t.Context(), "*").Err(); err == nil {
		c.t.Error("the user of the health check reads keys")
	}
	return address
}

// grant does what the services roles and grants do.
func (c *composed) grant() {
	c.t.Helper()
	dir := c.t.TempDir()
	copyInto(c.t, filepath.Join(repository, "deploy", "postgres", "roles.sql"), dir)
	text := strings.ReplaceAll(string(readFile(c.t, filepath.Join(repository, "deploy", "compose", "passwords.sql"))), "/run/secrets", c.secrets)
	if err := os.WriteFile(filepath.Join(dir, "passwords.sql"), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	command(c.t, c.s.postgres.Program("psql"), "-X", "-d", c.s.databaseURL, "-f", filepath.Join(dir, "passwords.sql"))
}

// begin starts a service of our own programs: with its environment, but on free ports of loopback.
func (c *composed) begin(name string) *process {
	c.t.Helper()
	environment := maps.Clone(c.services[name].Environment)
	for variable, value := range map[string]string{"HTTP_ADDR": "127.0.0.1:0", "OPS_ADDR": "127.0.0.1:0", "TRUSTED_PROXIES": "127.0.0.1"} {
		if _, ok := environment[variable]; ok {
			environment[variable] = value
		}
	}
	environment["RATE_LIMIT_PER_MINUTE"] = "0" // the one user of the test asks without a pause
	var env []string
	for _, variable := range slices.Sorted(maps.Keys(environment)) {
		env = append(env, variable+"="+environment[variable])
	}
	return c.image.begin(c.t, env, c.services[name].Command...)
}

// start starts a service and waits until its own health check passes.
func (c *composed) start(name string) *process {
	c.t.Helper()
	p := c.begin(name)
	p.awaitReady()
	check := c.image.begin(c.t, []string{"OPS_ADDR=" + p.opsAddr}, "/"+name, "healthcheck")
	if err := check.wait(); err != nil {
		c.t.Errorf("%s healthcheck: %v\n%s", name, err, check.log())
	}
	if status, _ := get(c.t, p.operator()+"/metrics"); status != http.StatusUnauthorized {
		c.t.Errorf("%s shows its metrics without the token: %d", name, status)
	}
	return p
}

// proxy starts HAProxy with the service's configuration, in which the test names the APIs.
func (c *composed) proxy() (url string) {
	c.t.Helper()
	address := freeAddress(c.t)
	var servers strings.Builder
	for n, api := range c.s.apis {
		fmt.Fprintf(&servers, "    server api%d %s check\n", n, api.addr)
	}
	path := filepath.Join(repository, "deploy", "compose", "haproxy.cfg")
	command(c.t, "haproxy", "-c", "-q", "-f", path)
	text := string(readFile(c.t, path))
	for _, change := range [][2]string{
		{"    server-template api 8 api:8080 check\n", servers.String()}, {" resolvers docker init-addr none", ""}, {"bind :8080", "bind " + address},
	} {
		if !strings.Contains(text, change[0]) {
			c.t.Fatalf("haproxy.cfg has no %q", change[0])
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	changed := filepath.Join(c.t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	beginCommand(c.t, "haproxy", exec.Command("haproxy", "-db", "-f", changed)) //nolint:noctx // the test's end kills it
	health := c.services["proxy"].HealthCheck.Test
	for i := range health {
		health[i] = strings.Replace(health[i], "127.0.0.1/8080", strings.Replace(address, ":", "/", 1), 1)
	}
	testenv.Eventually(c.t, "the proxy passes its health check", func() bool {
		return exec.CommandContext(c.t.Context(), health[1], health[2:]...).Run() == nil
	})
	return "http://" + address
}

// operate runs a command of worker in the service operator.
func (c *composed) operate(words ...string) {
	c.t.Helper()
	operator := c.services["operator"]
	operator.Command = append([]string{"/worker"}, words...)
	c.services["operator"] = operator
	p := c.begin("operator")
	if err := p.wait(); err != nil {
		c.t.Errorf("worker %v: %v\n%s", words, err, p.log())
	}
}
