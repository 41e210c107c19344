package environment

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/local"
)

const (
	slots       = 16384 // of every Redis cluster
	clusterTick = 50 * time.Millisecond
)

// redisServers are one server, or the masters of a cluster.
type redisServers []*local.Redis

// startRedis starts a cluster of so many masters, or one server for 0. It returns the servers
// that it has started in any case.
func startRedis(ctx context.Context, masters int, durable bool) (servers redisServers, err error) {
	cfg := local.RedisConfig{Durable: durable, Password: rand.Text(), Cluster: masters > 0}
	if cfg.Cluster {
		cfg.Settings = map[string]string{"cluster-node-timeout": "15000"} // Redis's default: full load fails no node
	}
	for range max(1, masters) {
		server, err := local.StartRedis(ctx, cfg)
		if err != nil {
			return servers, err
		}
		servers = append(servers, server)
	}
	if !cfg.Cluster {
		return servers, nil
	}
	return servers, servers.join(ctx)
}

// join makes a cluster of the servers, each with an equal share of the slots, and waits until
// each of them knows it.
func (s redisServers) join(ctx context.Context) error {
	return s.ask(func(clients []redis.UniversalClient) error {
		for n, client := range clients {
			first, last := slots*n/len(s), slots*(n+1)/len(s)-1
			if err := client.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", first, last).Err(); err != nil {
				return err
			}
			bus, err := client.ConfigGet(ctx, "cluster-port").Result()
			if err != nil {
				return err
			}
			address := s.address(n)
			if err := clients[0].Do(ctx, "CLUSTER", "MEET", address.Hostname(), address.Port(), bus["cluster-port"]).Err(); err != nil {
				return err
			}
		}
		for _, client := range clients {
			if err := s.awaitCluster(ctx, client); err != nil {
				return err
			}
		}
		return nil
	})
}

// awaitCluster waits until a server knows all others and an owner of every slot. ctx bounds it.
func (s redisServers) awaitCluster(ctx context.Context, client redis.UniversalClient) error {
	for {
		info, err := client.ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r\n", len(s))) {
			return nil
		}
		if err := Sleep(ctx, clusterTick); err != nil {
			return err
		}
	}
}

// url is what the processes get.
func (s redisServers) url() string {
	if len(s) == 1 {
		return s[0].URL()
	}
	hosts := make([]string, len(s))
	for n := range s {
		hosts[n] = s.address(n).Host
	}
	return "redis+cluster://" + s.address(0).User.String() + "@" + strings.Join(hosts, ",")
}

func (s redisServers) address(n int) *url.URL {
	address, err := url.Parse(s[n].URL())
	if err != nil {
		panic(err) // a URL of package local
	}
	return address
}

func (s redisServers) remove(ctx context.Context) error {
	var errs []error
	for _, server := range s {
		errs = append(errs, server.Remove(ctx))
	}
	return errors.Join(errs...)
}

// ask calls do with a client of each server.
func (s redisServers) ask(do func([]redis.UniversalClient) error) error {
	clients := make([]redis.UniversalClient, len(s))
	for n, server := range s {
		client, err := queue.Connect(server.URL())
		if err != nil {
			return err
		}
		defer client.Close() //nolint:errcheck // nothing is pending on it
		clients[n] = client
	}
	if err := do(clients); err != nil {
		return fmt.Errorf("ask Redis: %w", err)
	}
	return nil
}

// sumInfo is the sum over all servers of every number in their INFO.
func sumInfo(ctx context.Context, clients []redis.UniversalClient) (map[string]int64, error) {
	sum := map[string]int64{}
	for _, client := range clients {
		info, err := client.Info(ctx).Result()
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(info) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				sum[name] += n
			}
		}
	}
	return sum, nil
}
