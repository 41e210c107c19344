package queue

import (
	"bytes"
	"context"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A worker needs few connections, however many partitions it serves, and logs no warning
// about that: Redis refuses every connection beyond them.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	const few = "30"
	many := queuesOf(128) // each of its Asynq servers would need a connection of its own
	client := connect(t, testenv.RedisServer(t).URL())
	if err := client.ConfigSet(t.Context(), "maxclients", few).Err(); err != nil {
		t.Fatal(err)
	}
	var logged safeBuffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	handled := make(chan uuid.UUID, 1)
	server := NewServer(ServerConfig{
		Redis: client, Queues: many, Log: log, IsFailure: func(error) bool { return true },
		Handler: func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
			handled <- jobs[0].JobID
			return nil, nil, nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	tasks := NewClient(client, many, log, func() {})
	for account := range int64(100) {
		task := Task{AccountID: account, JobID: uuid.New()}
		if err := tasks.Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, handled); got != task.JobID {
			t.Errorf("handled %s, want %s", got, task.JobID)
		}
	}
	cancel()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	stats, err := client.Info(t.Context(), "stats").Result()
	if err != nil || !regexp.MustCompile(`rejected_connections:0\b`).MatchString(stats) {
		t.Errorf("Redis refused connections beyond %s: %v\n%s", few, err, stats)
	}
	if logged := logged.String(); logged != "" {
		t.Errorf("it logs\n%s", logged)
	}
}

// safeBuffer is a buffer to which several goroutines write.
type safeBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer // guarded by mu
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buffer.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buffer.String()
}

// A URL of several nodes gives each kind of client its nodes, its password and its bounds.
func TestConnect_Nodes(t *testing.T) {
	t.Parallel()
	cluster, ok := connect(t, "rediss+cluster://u:p%40ss@a:1,[::1]:2,c?pool_size=3").(*redis.ClusterClient)
	if !ok {
		t.Fatal("no client of a cluster")
	}
	opt := cluster.Options()
	if want := []string{"a:1", "[::1]:2", "c:6379"}; !slices.Equal(opt.Addrs, want) {
		t.Errorf("nodes %q, want %q", opt.Addrs, want)
	}
	if opt.Username != "u" || opt.Password != "p@ss" || opt.PoolSize != 3 || opt.TLSConfig == nil || opt.ReadTimeout != callTimeout {
		t.Errorf("options %+v", opt)
	}
	sentinel, ok := connect(t, "redis+sentinel://:p%40ss@a:1,b/main?db=3&sentinel_password=other").(*redis.Client)
	if !ok {
		t.Fatal("no client of a server")
	}
	if opt := sentinel.Options(); opt.Password != "p@ss" || opt.DB != 3 || opt.PoolSize != connections || opt.TLSConfig != nil {
		t.Errorf("options %+v", opt)
	}
}
