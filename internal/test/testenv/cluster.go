package testenv

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/passbook/passbook/internal/test/local"
)

// Cluster is a Redis cluster of a test's own. The master of a third of the slots is a node of the
// first half of Nodes, until it fails over to its replica in the second half.
type Cluster struct {
	t        testing.TB
	Nodes    []*local.Redis
	password string
}

const (
	masters = 3
	slots   = 16384
)

// RedisCluster is a cluster of three masters and three replicas, stopped when the test ends.
func RedisCluster(t testing.TB) *Cluster {
	t.Helper()
	return RedisClusterOn(t, make([]*local.Host, masters))
}

// RedisClusterOn is the same on three hosts of the test's network. A replica runs on another host
// than its first master.
func RedisClusterOn(t testing.TB, hosts []*local.Host) *Cluster {
	t.Helper()
	c := &Cluster{t: t, password: rand.Text()}
	var nodes []local.RedisConfig
	for n := range 2 * masters {
		nodes = append(nodes, local.RedisConfig{Password: c.password, Cluster: true, Host: hosts[(n+n/masters)%masters]})
	}
	c.Nodes = startTogether(t, nodes...)
	host, port := hostPort(c.Nodes[0])
	for n := range c.Nodes {
		if n > 0 {
			c.Do(n, "CLUSTER", "MEET", host, port, c.Do(0, "CONFIG", "GET", "cluster-port").(map[any]any)["cluster-port"])
		}
		if n < masters {
			c.Do(n, "CLUSTER", "ADDSLOTSRANGE", slots*n/masters, slots*(n+1)/masters-1)
		}
	}
	for n := range masters {
		id := c.ID(n)
		Eventually(t, "a replica to know its master", func() bool {
			_, err := tryDo(t, c.Nodes[masters+n], "CLUSTER", "REPLICATE", id)
			return err == nil
		})
	}
	for n := range c.Nodes {
		Eventually(t, "a node to be ready", func() bool { return c.isReady(n) })
	}
	return c
}

// startTogether starts several servers at once.
func startTogether(t testing.TB, cfgs ...local.RedisConfig) []*local.Redis {
	t.Helper()
	servers, errs := make([]*local.Redis, len(cfgs)), make([]error, len(cfgs))
	var starting sync.WaitGroup
	for n, cfg := range cfgs {
		starting.Go(func() { servers[n], errs[n] = local.StartRedis(t.Context(), cfg) })
	}
	starting.Wait()
	for n, err := range errs {
		if err != nil {
			t.Errorf("testenv: %v", err)
			continue
		}
		removeAfter(t, servers[n].Remove)
	}
	if t.Failed() {
		t.FailNow()
	}
	return servers
}

// isReady is true for a node that knows all slots and all nodes, and whose replication runs.
func (c *Cluster) isReady(n int) bool {
	info, err := c.info(n)
	return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:6") &&
		(strings.Contains(info, "connected_slaves:1") || strings.Contains(info, "master_link_status:up"))
}

// info is what a node says of the cluster and of its replication.
func (c *Cluster) info(n int) (string, error) {
	cluster, err := tryDo(c.t, c.Nodes[n], "CLUSTER", "INFO")
	replication, replicationErr := tryDo(c.t, c.Nodes[n], "INFO", "replication")
	return fmt.Sprint(cluster, replication), errors.Join(err, replicationErr)
}

// IsMaster is true for a node that is a master now.
func (c *Cluster) IsMaster(n int) bool {
	info, err := c.info(n)
	return err == nil && strings.Contains(info, "role:master")
}

// ID is the name of a node in the cluster.
func (c *Cluster) ID(n int) string {
	c.t.Helper()
	id, _ := c.Do(n, "CLUSTER", "MYID").(string)
	return id
}

// Do gives a command to one node.
func (c *Cluster) Do(n int, command ...any) any {
	c.t.Helper()
	return mustDo(c.t, c.Nodes[n], command...)
}

// URL names two of the nodes; a client finds the others.
func (c *Cluster) URL() string {
	hosts := make([]string, 2)
	for n := range hosts {
		hosts[n] = net.JoinHostPort(hostPort(c.Nodes[n]))
	}
	return "redis+cluster://:" + c.password + "@" + strings.Join(hosts, ",")
}

// MoveSlot moves the slot of a key to another master, key by key, as an operator's tool does.
// Between its steps it calls between, which may be nil: the slot is then open on both masters.
func (c *Cluster) MoveSlot(key string, from, to int, between func()) {
	c.t.Helper()
	slot := c.Do(from, "CLUSTER", "KEYSLOT", key)
	c.Do(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.ID(from))
	c.Do(from, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.ID(to))
	host, port := hostPort(c.Nodes[to])
	for moving := true; moving; {
		if between != nil {
			between()
		}
		keys, _ := c.Do(from, "CLUSTER", "GETKEYSINSLOT", slot, 1).([]any)
		for _, one := range keys {
			c.Do(from, "MIGRATE", host, port, one, 0, 5000, "REPLACE", "AUTH", c.password)
		}
		moving = len(keys) > 0
	}
	c.Do(to, "CLUSTER", "SETSLOT", slot, "NODE", c.ID(to))
	c.Do(from, "CLUSTER", "SETSLOT", slot, "NODE", c.ID(to))
}

// MasterOf is the node that holds the slot of a key.
func (c *Cluster) MasterOf(key string) int {
	c.t.Helper()
	for n := range c.Nodes {
		if _, err := tryDo(c.t, c.Nodes[n], "EXISTS", key); err == nil { // the others answer MOVED, or are away
			return n
		}
	}
	c.t.Fatalf("testenv: no master has the slot of %s", key)
	return -1
}
