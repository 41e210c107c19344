package queue

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const (
	// announceEvery is how often a worker announces itself. One that has not done so for
	// forgetAfter counts as dead.
	announceEvery = 2 * time.Second
	forgetAfter   = 3 * announceEvery
)

// workersKey is the key of a sorted set: the running workers, by the time of their last
// announcement. It is also the channel on which workers say that they start or stop. Both
// decide only which worker is woken for a partition.
func (q Queues) workersKey() string { return q.Prefix + ":workers" }

// assignment assigns each partition to one worker, by rendezvous hashing (Thaler and
// Ravishankar, 1998). Only the assigned worker is woken for the partition's tasks.
//
// If Redis woke all workers, all but one would ask Redis twice for nothing
// (internal/bench/EXPERIMENTS.md), and two workers at one partition would split its batches.
// The other workers poll the partition's pending list, and help when the assigned worker is
// dead or has too many tasks.
type assignment struct {
	client    redis.UniversalClient
	id        string // of this worker
	queues    Queues
	log       *slog.Logger
	every     time.Duration                   // announceEvery; longer in tests
	elsewhere atomic.Pointer[map[string]bool] // the pending lists assigned to other workers
	changed   chan struct{}                   // signals that elsewhere changed (buffer of 1)
	refresh   chan struct{}                   // asks run to read the workers now (buffer of 1)
}

func newAssignment(client redis.UniversalClient, queues Queues, log *slog.Logger) *assignment {
	a := &assignment{
		client: client, id: workerID(), queues: queues, log: log, every: announceEvery,
		changed: make(chan struct{}, 1), refresh: make(chan struct{}, 1),
	}
	a.assign(nil)
	return a
}

// workerID makes the name of this worker: where an operator finds it, and what makes it unique.
func workerID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

// isElsewhere is true for the pending list of a partition that is assigned to another worker.
func (a *assignment) isElsewhere(list string) bool { return (*a.elsewhere.Load())[list] }

// run announces this worker and keeps the assignment up to date until ctx ends. Then it
// withdraws the worker.
func (a *assignment) run(ctx context.Context) {
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	for {
		workers, err := a.announce(ctx)
		if err != nil {
			a.log.Debug("could not read the workers; serving every partition", "error", err)
		}
		a.assign(workers)
		select {
		case <-tick.C:
		case <-a.refresh:
		case <-ctx.Done():
			a.withdraw(context.WithoutCancel(ctx))
			return
		}
	}
}

// announceScript records the time of a worker's announcement, by Redis's clock: a worker's
// own may be wrong. It removes announcements that are too old, and those from the future: a
// Redis with another clock wrote them, before a failover.
//
// KEYS[1] the workers; ARGV[1] the worker, ARGV[2] forgetAfter in seconds. Returns the
// running workers.
var announceScript = redis.NewScript(`
local now = tonumber(redis.call("TIME")[1])
if redis.call("ZADD", KEYS[1], now, ARGV[1]) == 1 then redis.pcall("PUBLISH", KEYS[1], "came") end
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - tonumber(ARGV[2]))
redis.call("ZREMRANGEBYSCORE", KEYS[1], now + 1, "+inf")
return redis.call("ZRANGE", KEYS[1], 0, -1)`)

func (a *assignment) announce(ctx context.Context) (workers []string, err error) {
	if err := a.queues.Owner.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, announceEvery)
	defer cancel()
	return announceScript.Run(ctx, a.client, []string{a.queues.workersKey()}, a.id, int(forgetAfter.Seconds())).StringSlice()
}

// withdraw removes this worker, so that the others serve its partitions at once. If that
// fails, the worker counts as dead forgetAfter its last announcement.
func (a *assignment) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := a.client.Pipelined(ctx, func(both redis.Pipeliner) error {
		both.ZRem(ctx, a.queues.workersKey(), a.id)
		both.Publish(ctx, a.queues.workersKey(), "left")
		return nil
	})
	if err != nil {
		a.log.Debug("could not withdraw from the workers", "error", err)
	}
}

// assign computes which partitions are assigned to other workers. If workers is empty, all
// partitions are assigned to this worker.
func (a *assignment) assign(workers []string) {
	elsewhere := map[string]bool{}
	workers = slices.Concat(workers, []string{a.id})
	for partition := range a.queues.Partitions {
		if assignedWorker(workers, partition) != a.id {
			elsewhere[a.queues.pending(partition)] = true
		}
	}
	if before := a.elsewhere.Swap(&elsewhere); before == nil || !maps.Equal(*before, elsewhere) {
		signal(a.changed)
	}
}

// assignedWorker returns the worker with the highest weight for a partition; empty where there is
// none.
func assignedWorker(workers []string, partition int) (assigned string) {
	var most uint64
	for _, worker := range workers {
		if w := weight(worker, partition); assigned == "" || w > most {
			assigned, most = worker, w
		}
	}
	return assigned
}

// refreshSoon makes run read the workers again: one has started or stopped.
func (a *assignment) refreshSoon() { signal(a.refresh) }

// signal sends to a channel with a buffer of 1, unless a signal is waiting there.
func signal(to chan<- struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// weight is a worker's rendezvous weight for a partition; the highest is assigned.
func weight(worker string, partition int) uint64 {
	hash := fnv.New64a()
	// The partition comes first: the last bytes hardly change the highest bits.
	_, _ = hash.Write(strconv.AppendInt(nil, int64(partition), 10)) // never fails
	_, _ = hash.Write([]byte(worker))
	return hash.Sum64()
}
