package queue

import (
	"cmp"
	"context"
	"slices"

	"github.com/redis/go-redis/v9"
)

// A partition with manyTasks pending tasks, or with a pending task and more than manyNotified
// notifications, has too many for its assigned worker. Another worker then takes a task too.
const (
	manyTasks    = 8
	manyNotified = 8 * maxTaken
)

// PendingList is the state of a partition's pending list.
type PendingList struct {
	Oldest   string // name of the task that is dequeued next; empty: no task is pending
	Notified bool   // notifications wait for a task
	Paused   bool   // an operator paused the partition
	Err      error  // Redis's error; the other fields are then unknown

	many bool // it has too many for one worker: manyTasks, or more than manyNotified
}

// PendingLists are the pending lists of all partitions.
type PendingLists struct {
	lists []PendingList
}

// Of returns the pending list of the account's partition.
func (l PendingLists) Of(accountID int64) PendingList {
	if len(l.lists) == 0 {
		return PendingList{}
	}
	return l.lists[Partition(accountID, len(l.lists))]
}

// PendingLists polls every partition's pending list. An error of Redis about one list
// concerns that list alone.
func (c *Client) PendingLists(ctx context.Context) PendingLists {
	if err := c.queues.Owner.Err(); err != nil {
		return PendingLists{slices.Repeat([]PendingList{{Err: err}}, c.queues.Partitions)}
	}
	partitions := make([]int, c.queues.Partitions)
	for partition := range partitions {
		partitions[partition] = partition
	}
	return PendingLists{pollPending(ctx, c.redis, c.queues, partitions)}
}

// pollPending reads the pending lists of some partitions, in their order, in one round trip to each
// master. A master that does not answer leaves the lists of the others known.
func pollPending(ctx context.Context, client redis.UniversalClient, queues Queues, partitions []int) []PendingList {
	polled := make([]PendingList, queues.Partitions) // by partition, so that the calls write different elements
	eachMaster(ctx, client, queues, partitions, func(some []int) {
		for i, list := range pollMaster(ctx, client, queues, some) {
			polled[some[i]] = list
		}
	})
	lists := make([]PendingList, len(partitions))
	for i, partition := range partitions {
		lists[i] = polled[partition]
	}
	return lists
}

// pollMaster is pollPending for partitions of one master.
func pollMaster(ctx context.Context, client redis.UniversalClient, queues Queues, partitions []int) []PendingList {
	tasks, paused := make([]*redis.StringSliceCmd, len(partitions)), make([]*redis.IntCmd, len(partitions))
	notified := make([]*redis.IntCmd, len(partitions))
	_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, partition := range partitions {
			tasks[i] = p.LRange(ctx, queues.pending(partition), -manyTasks, -1)
			paused[i] = p.Exists(ctx, keysOf(queues.Name(partition))+"paused")
			notified[i] = p.LLen(ctx, queues.notified(partition))
		}
		return nil
	})
	var unanswered error // of all lists: Redis did not answer
	if err != nil && !IsAnswer(err) {
		unanswered = err
	}
	lists := make([]PendingList, len(partitions))
	for i := range lists {
		names := tasks[i].Val()
		lists[i] = PendingList{
			Notified: notified[i].Val() > 0,
			Paused:   paused[i].Val() > 0,
			Err:      cmp.Or(tasks[i].Err(), paused[i].Err(), unanswered),
			many:     len(names) == manyTasks || notified[i].Val() > manyNotified,
		}
		if len(names) > 0 {
			lists[i].Oldest = names[len(names)-1]
		}
	}
	return lists
}
