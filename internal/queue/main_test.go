package queue

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

const partitions = 16

var queues = queuesOf(partitions)

func queuesOf(partitions int) Queues {
	return Queues{Prefix: "test", Partitions: partitions}
}

// manyPartitions make a task for nearly every account.
const manyPartitions = 1024

// accountOf is an account of a partition.
func accountOf(partition int) int64 {
	for id := int64(1); ; id++ {
		if Partition(id, partitions) == partition {
			return id
		}
	}
}

func connect(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	client, err := Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func clientOf(client redis.UniversalClient) *Client {
	return NewClient(client, queues, slog.New(slog.DiscardHandler), func() {})
}

// serve runs a server until the test ends; prepare may change it before.
func serve(t testing.TB, client redis.UniversalClient, handler Handler, prepare func(*Server)) {
	t.Helper()
	server := NewServer(ServerConfig{
		Redis: client, Queues: queues, Handler: handler, Log: slog.New(slog.DiscardHandler),
		IsFailure: func(error) bool { return true },
	})
	prepare(server)
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func asIs(*Server) {}

// receive waits for the handler, with a bound.
func receive[T any](t testing.TB, from <-chan T) (got T) {
	t.Helper()
	const patience = 30 * time.Second
	select {
	case got = <-from:
	case <-time.After(patience):
		t.Fatal("the handler was not called")
	}
	return got
}

// countDequeues counts the dequeues that reach Redis.
type countDequeues struct{ n atomic.Int64 }

// settle waits until at least so many dequeues have reached Redis, and no more come.
func (c *countDequeues) settle(t *testing.T, least int64) {
	t.Helper()
	last := int64(-1)
	testenv.Eventually(t, "the workers to wait for wake-ups", func() bool {
		<-time.After(250 * time.Millisecond)
		now := c.n.Load()
		settled := now == last && now >= least
		last = now
		return settled
	})
}

func (c *countDequeues) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *countDequeues) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (c *countDequeues) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); cmd.Name() == "evalsha" && len(args) > 6 {
			if keys := args[2]; keys == 4 {
				c.n.Add(1)
			}
		}
		return next(ctx, cmd)
	}
}
