package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// State is the state of a partition's queue, as an operator sees it.
type State struct {
	Name     string
	Pending  int    // tasks that wait for a worker
	Active   int    // tasks that a worker handles
	Retry    int    // tasks that wait for their next attempt
	Archived int    // tasks that were given up
	Notified int    // notifications that wait for a task
	Lost     int    // active tasks whose worker has not renewed their lease
	Paused   bool   // by an operator
	Worker   string // the assigned worker; empty where none runs
}

// States reads the states of all partitions, in their order. The leases are compared with Redis's
// clock, though a worker's clock dates them: with clocks that differ, Lost may be wrong.
func States(ctx context.Context, client redis.UniversalClient, queues Queues) ([]State, error) {
	now, err := client.Time(ctx).Result()
	if err != nil {
		return nil, fmt.Errorf("read the queues: %w", err)
	}
	workers, err := client.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: queues.workersKey(), ByScore: true, Start: now.Add(-forgetAfter).Unix(), Stop: now.Unix(),
	}).Result()
	if err != nil {
		return nil, fmt.Errorf("read the workers: %w", err)
	}
	states := make([]State, queues.Partitions)
	reads := make([]stateRead, queues.Partitions)
	_, err = client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition := range states {
			reads[partition] = readState(ctx, p, queues.Name(partition), now)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the queues: %w", err)
	}
	for partition := range states {
		states[partition] = reads[partition].state(queues.Name(partition))
		states[partition].Worker = assignedWorker(workers, partition)
	}
	return states, nil
}

// stateRead are the commands that read a State.
type stateRead struct {
	pending, active, retry, archived, notified, lost, paused *redis.IntCmd
}

func readState(ctx context.Context, p redis.Pipeliner, queue string, now time.Time) stateRead {
	keys := keysOf(queue)
	return stateRead{
		pending: p.LLen(ctx, keys+"pending"), active: p.LLen(ctx, keys+"active"), retry: p.ZCard(ctx, keys+"retry"),
		archived: p.ZCard(ctx, keys+"archived"), notified: p.LLen(ctx, notifiedOf(queue)),
		lost:   p.ZCount(ctx, keys+"lease", "-inf", fmt.Sprint(now.Unix())),
		paused: p.Exists(ctx, keys+"paused"),
	}
}

func (r stateRead) state(name string) State {
	n := func(cmd *redis.IntCmd) int { return int(cmd.Val()) }
	return State{
		Name: name, Pending: n(r.pending), Active: n(r.active), Retry: n(r.retry), Archived: n(r.archived),
		Notified: n(r.notified), Lost: n(r.lost), Paused: n(r.paused) > 0,
	}
}
