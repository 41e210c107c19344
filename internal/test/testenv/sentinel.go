package testenv

import (
	"crypto/rand"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/local"
)

// Sentinels are a Redis master with a replica, and three Sentinels that watch both.
type Sentinels struct {
	Servers   []*local.Redis // the first one is the master at first
	Sentinels []*local.Redis
	password  string
}

const masterName = "main"

// RedisSentinels starts them, and stops them when the test ends.
func RedisSentinels(t testing.TB) *Sentinels {
	t.Helper()
	s := &Sentinels{password: rand.Text()}
	s.Servers = startTogether(t, 2, local.RedisConfig{Password: s.password})
	s.Sentinels = startTogether(t, 3, local.RedisConfig{
		Password: s.password, Sentinel: true,
		Settings: map[string]string{"sentinel sentinel-pass": strconv.Quote(s.password)},
	})
	host, port := hostPort(s.Servers[0])
	s.do(t, s.Servers[1], "REPLICAOF", host, port)
	for _, sentinel := range s.Sentinels {
		s.do(t, sentinel, "SENTINEL", "MONITOR", masterName, host, port, 2)
		s.do(t, sentinel, "SENTINEL", "SET", masterName, "auth-pass", s.password,
			"down-after-milliseconds", 1000, "failover-timeout", 3000)
	}
	for _, sentinel := range s.Sentinels {
		Eventually(t, "a Sentinel to know the others", func() bool {
			known, _ := s.do(t, sentinel, "SENTINEL", "MASTER", masterName).(map[any]any)
			return known["num-other-sentinels"] == "2" && known["num-slaves"] == "1"
		})
	}
	return s
}

// IsMaster is true for a server that takes writes. One that is being promoted closes its
// connections, and is no master yet.
func (s *Sentinels) IsMaster(t testing.TB, n int) bool {
	t.Helper()
	answer, err := s.try(t, s.Servers[n], "ROLE")
	info, _ := answer.([]any)
	return err == nil && len(info) > 0 && info[0] == "master"
}

func (s *Sentinels) do(t testing.TB, server *local.Redis, command ...any) any {
	t.Helper()
	answer, err := s.try(t, server, command...)
	if err != nil {
		t.Fatalf("testenv: %v: %v", command[0], err)
	}
	return answer
}

func (s *Sentinels) try(t testing.TB, server *local.Redis, command ...any) (any, error) {
	t.Helper()
	host, port := hostPort(server)
	client := redis.NewClient(&redis.Options{Addr: host + ":" + port, Password: s.password, MaxRetries: -1})
	defer client.Close() //nolint:errcheck // nothing is pending on it
	return client.Do(t.Context(), command...).Result()
}

func hostPort(server *local.Redis) (host, port string) {
	u, _ := url.Parse(server.URL()) // a URL that this project writes
	return u.Hostname(), u.Port()
}

// URL names the Sentinels and the master.
func (s *Sentinels) URL() string {
	var hosts []string
	for _, sentinel := range s.Sentinels {
		host, port := hostPort(sentinel)
		hosts = append(hosts, host+":"+port)
	}
	return "redis+sentinel://:" + s.password + "@" + strings.Join(hosts, ",") + "/" + masterName + "?sentinel_password=" + s.password
}
