package e2e_test

import (
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// afterFault is how many jobs are accepted after each fault of a Redis node.
const afterFault = 60

const clusterClients = 6

// loadOn starts a system on a Redis, and clients that send requests to it.
func loadOn(t *testing.T, redisURL string) (*system, *responseCheck, *load) {
	t.Helper()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redisURL: redisURL, build: plain}
	s.start(2, 2)
	c := newClient(t, s)
	w := new(responseCheck)
	c.watch = w.see
	clients := startLoad(c, clusterClients)
	w.awaitAccepted(t, afterFault)
	return s, w, clients
}

// stopUnrefused stops the clients and compares every outcome with the model. No request was refused.
func stopUnrefused(t *testing.T, w *responseCheck, clients *load) {
	t.Helper()
	clients.stop()
	if _, refused := w.count(); refused > 0 {
		t.Errorf("%d requests were refused", refused)
	}
}

// pendingOf is the key of a partition's pending list.
func pendingOf(partition int) string {
	return "asynq:{" + queue.Queues{Prefix: "passbook"}.Name(partition) + "}:pending"
}

// Under load a cluster's master dies and comes back as a replica, a slot moves to another master
// while tasks wait in it, and a master is cut off and comes back after its replica took over. Every
// job finishes once and in order, and the APIs refuse none.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	cluster := testenv.RedisCluster(t)
	s, w, clients := loadOn(t, cluster.URL())
	if err := cluster.Nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the replica to take over", func() bool { return cluster.IsMaster(3) })
	w.awaitAccepted(t, afterFault)
	if err := cluster.Nodes[0].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the old master to be a replica", func() bool { return !cluster.IsMaster(0) })

	key := pendingOf(0)
	from := cluster.MasterOf(key)
	to := from
	for partition := 1; to == from; partition++ {
		to = cluster.MasterOf(pendingOf(partition))
	}
	cluster.MoveSlot(key, from, to, func() { w.awaitAccepted(t, clusterClients) })
	w.awaitAccepted(t, afterFault)

	thaw := testenv.Freeze(t, cluster.Nodes[1].PID())
	testenv.Eventually(t, "the replica to take over", func() bool { return cluster.IsMaster(4) })
	w.awaitAccepted(t, afterFault)
	thaw()
	testenv.Eventually(t, "the master that was cut off to be a replica", func() bool { return !cluster.IsMaster(1) })
	w.awaitAccepted(t, afterFault)
	stopUnrefused(t, w, clients)
	if status, body := get(t, s.workers[0].operator()+"/queues/api/queues"); status != 200 || !strings.Contains(body, `"queue":"passbook:tx:`) {
		t.Errorf("the dashboard answers %d %s", status, body)
	}
}

// Under load Sentinels replace a master that died.
func TestRedisSentinels(t *testing.T) {
	t.Parallel()
	sentinels := testenv.RedisSentinels(t)
	_, w, clients := loadOn(t, sentinels.URL())
	if err := sentinels.Servers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the replica to take over", func() bool { return sentinels.IsMaster(t, 1) })
	w.awaitAccepted(t, afterFault)
	stopUnrefused(t, w, clients)
}
