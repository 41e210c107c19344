package queue

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

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

// silent is a redis.Hook that swallows the dials to one node, as the network does to a host that is
// cut off.
type silent struct {
	address string
	dials   atomic.Int64
}

func (s *silent) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != s.address {
			return next(ctx, network, address)
		}
		s.dials.Add(1)
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
	}
}

func (s *silent) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (s *silent) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A process that does not reach one master of a cluster writes notifications to the others, and reads
// their pending lists. It dials the silent master once for each call: a client that looks for the new
// master asks the nodes one after another.
func TestOneMasterSilent(t *testing.T) {
	t.Parallel()
	cluster := testenv.RedisCluster(t)
	direct, ok := connect(t, cluster.URL()).(*redis.ClusterClient)
	if !ok {
		t.Fatal("Connect made no client of a cluster")
	}
	masterOf := func(key string) string {
		master, err := direct.MasterForKey(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return master.Options().Addr
	}
	const asynqQueues = "asynq:queues" // a client's first task in a queue is written to the master of this key, too
	lost := 0
	for masterOf(queues.pending(lost)) == masterOf(asynqQueues) {
		lost++
	}
	cut := &silent{address: masterOf(queues.pending(lost))}
	client, _ := connect(t, cluster.URL()).(*redis.ClusterClient)
	client.OnNewNode(func(node *redis.Client) { node.AddHook(cut) })
	testenv.Eventually(t, "the client to know the commands, which it asks nodes at random for", func() bool {
		return client.SAdd(t.Context(), asynqQueues, queues.Name(lost)).Err() == nil
	})
	testenv.Eventually(t, "the client to know the cluster", func() bool {
		master, err := client.MasterForKey(t.Context(), queues.pending(lost))
		if err != nil {
			return false
		}
		before := cut.dials.Load()
		if master.Ping(t.Context()).Err() == nil {
			t.Error("the silent master answers")
		}
		if dials := cut.dials.Load() - before; dials != 1 {
			t.Errorf("%d dials for a call, want 1", dials)
		}
		return true
	})

	all := map[int][]Notification{}
	for partition := range partitions {
		all[partition] = []Notification{{JobID: uuid.New(), AccountID: accountOf(partition), Position: 1, Jobs: 1}}
	}
	if newWriter(clientOf(client)).write(t.Context(), all) {
		t.Error("all notifications are written, also those of the silent master")
	}
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	lists := clientOf(client).PendingLists(ctx)
	reached := 0
	for partition := range partitions {
		isLost := masterOf(queues.pending(partition)) == cut.address
		if !isLost {
			reached++
		}
		want := map[bool]int64{true: 0, false: 1}[isLost]
		if tasks := direct.LLen(t.Context(), queues.pending(partition)).Val(); tasks != want {
			t.Errorf("partition %d has %d tasks, want %d", partition, tasks, want)
		}
		if list := lists.Of(accountOf(partition)); (list.Err != nil) != isLost || (list.Oldest != "") == isLost {
			t.Errorf("partition %d's list: %+v; silent: %v", partition, list, isLost)
		}
	}
	if reached == 0 {
		t.Error("the silent master has all partitions")
	}
}
