package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

const (
	// straysEvery is how often stray queues are looked for.
	straysEvery = 2 * time.Second
	// straysIdle is after how many looks that found no task they are not served any more.
	straysIdle = 30
	// straysAtOnce is how many of their tasks are handled at once. They share one server,
	// which polls; order rests on Postgres.
	straysAtOnce = 4
	// maxStrays bounds the queues that are served: QUEUE_PARTITIONS is at most so large.
	maxStrays = 1024
)

// ErrStrays is returned while queues hold tasks, or did a minute ago, that no partition
// of this process has.
var ErrStrays = errors.New("queues of more partitions than QUEUE_PARTITIONS hold tasks")

// strays serves the stray queues: those under the installation's prefix that a process
// with more partitions writes to, or has written to. Their tasks would stay in Redis
// for ever; their jobs the sweep would find, later.
type strays struct {
	cfg    ServerConfig
	handle asynq.HandlerFunc
	served atomic.Int64 // how many queues are
	names  []string     // of those. The rest is run's own
	server *asynq.Server
	idle   int // looks without a task
}

// err returns ErrStrays while any are served.
func (s *strays) err() error {
	if n := s.served.Load(); n > 0 {
		return fmt.Errorf("%w: %d beside %d partitions", ErrStrays, n, s.cfg.Queues.Partitions)
	}
	return nil
}

// run looks for stray queues until ctx ends. It returns when the tasks in hand are
// finished, or shutdownTimeout is over.
func (s *strays) run(ctx context.Context) {
	defer s.stop()
	tick := time.NewTicker(straysEvery)
	defer tick.Stop()
	for {
		s.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *strays) look(ctx context.Context) {
	if s.cfg.Queues.Owner.Err() != nil {
		s.stop()
		return
	}
	names, tasks, err := s.find(ctx)
	if err != nil {
		s.cfg.Log.Debug("can't look for stray queues", "error", err)
		return
	}
	if s.idle++; tasks > 0 {
		s.idle = 0
	}
	known := !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(s.names, name) })
	switch {
	case tasks > 0 && !known:
		s.stop()
		s.start(names, tasks)
	case s.idle >= straysIdle:
		s.stop()
	}
}

// find returns the stray queues, and how many tasks they hold. It counts none at a key
// of a wrong type.
func (s *strays) find(ctx context.Context) (names []string, tasks int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	all, err := s.cfg.Redis.SMembers(ctx, allQueues).Result()
	if err != nil {
		return nil, 0, err
	}
	for _, name := range all {
		if s.cfg.Queues.isStray(name) && len(names) < maxStrays {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, 0, nil
	}
	var counts []*redis.IntCmd
	_, err = s.cfg.Redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, name := range names {
			keys := keysOf(name)
			counts = append(counts, p.LLen(ctx, keys+"pending"), p.LLen(ctx, keys+"active"), p.ZCard(ctx, keys+"retry"), p.ZCard(ctx, keys+"scheduled"))
		}
		return nil
	})
	if err != nil && !IsAnswer(err) {
		return nil, 0, err
	}
	for _, count := range counts {
		tasks += count.Val()
	}
	return names, tasks, nil
}

// isStray is true for a queue under the prefix whose partition this process doesn't have.
func (q Queues) isStray(name string) bool {
	number, own := strings.CutPrefix(name, q.Prefix+nameInfix)
	partition, err := strconv.Atoi(number)
	return own && err == nil && partition >= q.Partitions && name == q.Name(partition)
}

func (s *strays) start(names []string, tasks int64) {
	priorities := map[string]int{}
	for _, name := range names {
		priorities[name] = 1
	}
	server := asynq.NewServerFromRedisClient(withoutCancels{s.cfg.Redis}, asynqConfig(s.cfg, priorities, straysAtOnce))
	if err := server.Start(s.handle); err != nil {
		s.cfg.Log.Debug("can't serve stray queues yet", "error", err)
		return
	}
	s.server, s.names = server, names
	s.served.Store(int64(len(names)))
	s.cfg.Log.Warn("queues of more partitions than this process has hold tasks; serving them: QUEUE_PARTITIONS is to be the same on every process",
		"partitions", s.cfg.Queues.Partitions, "queues", len(names), "tasks", tasks)
}

func (s *strays) stop() {
	if s.server != nil {
		s.server.Shutdown()
	}
	s.server, s.names = nil, nil
	s.served.Store(0)
}
