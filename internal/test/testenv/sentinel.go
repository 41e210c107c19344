package testenv

import (
	"crypto/rand"
	"net"
	"strconv"
	"strings"
	"testing"

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
	server := local.RedisConfig{Password: s.password}
	s.Servers = startTogether(t, server, server)
	sentinel := local.RedisConfig{
		Password: s.password, Sentinel: true,
		Settings: map[string]string{"sentinel sentinel-pass": strconv.Quote(s.password)},
	}
	s.Sentinels = startTogether(t, sentinel, sentinel, sentinel)
	host, port := hostPort(s.Servers[0])
	mustDo(t, s.Servers[1], "REPLICAOF", host, port)
	for _, sentinel := range s.Sentinels {
		mustDo(t, sentinel, "SENTINEL", "MONITOR", masterName, host, port, 2)
		mustDo(t, sentinel, "SENTINEL", "SET", masterName, "auth-pass", s.password,
			"down-after-milliseconds", 1000, "failover-timeout", 3000)
	}
	for _, sentinel := range s.Sentinels {
		Eventually(t, "a Sentinel to know the others", func() bool {
			known, _ := mustDo(t, sentinel, "SENTINEL", "MASTER", masterName).(map[any]any)
			return known["num-other-sentinels"] == "2" && known["num-slaves"] == "1"
		})
	}
	return s
}

// IsMaster is true for a server that takes writes. One that is being promoted closes its
// connections, and is no master yet.
func (s *Sentinels) IsMaster(t testing.TB, n int) bool {
	t.Helper()
	answer, err := tryDo(t, s.Servers[n], "ROLE")
	info, _ := answer.([]any)
	return err == nil && len(info) > 0 && info[0] == "master"
}

// URL names the Sentinels and the master.
func (s *Sentinels) URL() string {
	var hosts []string
	for _, sentinel := range s.Sentinels {
		hosts = append(hosts, net.JoinHostPort(hostPort(sentinel)))
	}
	return "redis+sentinel://:" + s.password + "@" + strings.Join(hosts, ",") + "/" + masterName + "?sentinel_password=" + s.password
}
