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
	// extraEvery is how often extra queues are looked for.
	extraEvery = 2 * time.Second
	// extraIdle is how many looks in a row find no task before a worker stops serving extra queues.
	extraIdle = 30
	// extraConcurrency is how many tasks of extra queues are handled at once. The queues share one
	// Asynq server, which polls. Postgres keeps the order of jobs.
	extraConcurrency = 4
	// maxExtra bounds the extra queues. QUEUE_PARTITIONS has the same bound.
	maxExtra = 1024
)

// ErrExtraQueues is returned while extra queues hold tasks, or did within the last minute.
var ErrExtraQueues = errors.New("queues of more partitions than QUEUE_PARTITIONS hold tasks")

// extraQueues serves extra queues: queues under the installation's prefix whose partition
// this process doesn't have. A process with more partitions writes to them, or did before. If
// they were not served, their tasks would stay in Redis for ever, and their jobs would wait for
// the sweep.
type extraQueues struct {
	cfg    ServerConfig
	handle asynq.HandlerFunc
	served atomic.Int64 // how many queues are served
	answer lastAnswer
	names  []string // of the served queues; only run uses this and the fields below
	server *asynq.Server
	idle   int // looks without a task
}

// err returns ErrExtraQueues while any are served.
func (e *extraQueues) err() error {
	if n := e.served.Load(); n > 0 {
		return fmt.Errorf("%w: %d beside %d partitions", ErrExtraQueues, n, e.cfg.Queues.Partitions)
	}
	return nil
}

// run looks for extra queues until ctx ends. It returns when their active tasks have
// finished, or after shutdownTimeout.
func (e *extraQueues) run(ctx context.Context) {
	defer e.stop()
	tick := time.NewTicker(extraEvery)
	defer tick.Stop()
	for {
		e.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look starts or stops the server of the extra queues, as their tasks need.
func (e *extraQueues) look(ctx context.Context) {
	if e.cfg.Queues.Owner.Err() != nil {
		e.stop()
		return
	}
	names, tasks, err := e.find(ctx)
	if err != nil {
		e.cfg.Log.Debug("could not look for extra queues", "error", err)
		return
	}
	e.answer.note()
	if e.idle++; tasks > 0 {
		e.idle = 0
	}
	known := !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(e.names, name) })
	switch {
	case tasks > 0 && !known:
		e.stop()
		e.start(names, tasks)
	case e.idle >= extraIdle:
		e.stop()
	}
}

// find returns the extra queues and how many tasks they hold. A key of a wrong type counts
// as empty.
func (e *extraQueues) find(ctx context.Context) (names []string, tasks int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	all, err := e.cfg.Redis.SMembers(ctx, allQueues).Result()
	if err != nil {
		return nil, 0, err
	}
	for _, name := range all {
		if e.cfg.Queues.isExtra(name) && len(names) < maxExtra {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, 0, nil
	}
	var counts []*redis.IntCmd
	_, err = e.cfg.Redis.Pipelined(ctx, func(p redis.Pipeliner) error {
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

// isExtra is true for a queue under the prefix whose partition this process doesn't have.
func (q Queues) isExtra(name string) bool {
	number, own := strings.CutPrefix(name, q.Prefix+nameInfix)
	partition, err := strconv.Atoi(number)
	return own && err == nil && partition >= q.Partitions && name == q.Name(partition)
}

func (e *extraQueues) start(names []string, tasks int64) {
	priorities := map[string]int{}
	for _, name := range names {
		priorities[name] = 1
	}
	server := asynq.NewServerFromRedisClient(withoutCancels{e.cfg.Redis}, asynqConfig(e.cfg, priorities, extraConcurrency))
	if err := server.Start(e.handle); err != nil {
		e.cfg.Log.Debug("could not serve extra queues", "error", err)
		return
	}
	e.server, e.names = server, names
	e.served.Store(int64(len(names)))
	e.cfg.Log.Warn("serving queues of more partitions than this process has; QUEUE_PARTITIONS must be the same on every process",
		"partitions", e.cfg.Queues.Partitions, "queues", len(names), "tasks", tasks)
}

func (e *extraQueues) stop() {
	if e.server != nil {
		e.server.Shutdown()
	}
	e.server, e.names = nil, nil
	e.served.Store(0)
}
