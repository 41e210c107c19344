package queue

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

// handleAll enqueues a task for each partition and waits until all are handled.
func handleAll(t *testing.T, client *Client, handled <-chan uuid.UUID) {
	t.Helper()
	want := map[uuid.UUID]bool{}
	for partition := range partitions {
		task := Task{AccountID: accountOf(partition), JobID: uuid.New()}
		testenv.Eventually(t, "the task to be written", func() bool { return client.Enqueue(t.Context(), task) == nil })
		want[task.JobID] = true
	}
	for len(want) > 0 {
		delete(want, receive(t, handled)) // one is handled twice, where Redis lost its end
	}
}

func serveHandled(t *testing.T, url string) (*Client, <-chan uuid.UUID, *waitingClient) {
	t.Helper()
	client := connect(t, url)
	handled := make(chan uuid.UUID, 4*partitions)
	var waiting *waitingClient
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		for _, job := range jobs {
			handled <- job.JobID
		}
		return nil, nil, nil
	}, func(s *Server) {
		waiting = s.waiting
		waiting.wait = time.Hour
	})
	return clientOf(client), handled, waiting
}

func sendsEvents(t *testing.T, waiting *waitingClient) {
	t.Helper()
	testenv.Eventually(t, "every master to send events", waiting.events.Load)
}

// Each master of a cluster wakes the worker for its partitions: dequeues wait for an hour. So do
// a master that takes over a slot, and a replica that takes over from a dead master.
func TestServeOnCluster(t *testing.T) {
	t.Parallel()
	cluster := testenv.RedisCluster(t)
	client, handled, waiting := serveHandled(t, cluster.URL())
	sendsEvents(t, waiting)
	handleAll(t, client, handled)

	key := queues.pending(0)
	from := cluster.MasterOf(key)
	cluster.Do(from, "CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction")
	if CheckWrites(t.Context(), client.redis, queues) == nil {
		t.Error("a cluster with a full master takes writes")
	}
	cluster.Do(from, "CONFIG", "SET", "maxmemory", "0")
	if err := CheckWrites(t.Context(), client.redis, queues); err != nil {
		t.Error(err)
	}
	to := (from + 1) % 3
	cluster.MoveSlot(key, from, to, nil)
	handleAll(t, client, handled)

	if err := cluster.Nodes[to].Kill(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the replica to take over", func() bool { return cluster.IsMaster(to + 3) })
	handleAll(t, client, handled)
	if err := cluster.Nodes[to].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the old master to be a replica", func() bool { return !cluster.IsMaster(to) })
	sendsEvents(t, waiting)
	handleAll(t, client, handled)
}

// Sentinels replace a dead master, and the worker follows.
func TestServeWithSentinels(t *testing.T) {
	t.Parallel()
	sentinels := testenv.RedisSentinels(t)
	client, handled, waiting := serveHandled(t, sentinels.URL())
	sendsEvents(t, waiting)
	handleAll(t, client, handled)
	if err := sentinels.Servers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the replica to take over", func() bool { return sentinels.IsMaster(t, 1) })
	handleAll(t, client, handled)
	sendsEvents(t, waiting)
	handleAll(t, client, handled)
}
