package queue

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// maxNotifications bounds the notifications that wait in memory. Notify drops further
	// ones, and the sweep finds their jobs.
	maxNotifications = 65536
	// maxCollected bounds how many notifications are written together. If all are of one
	// partition, they are arguments of one script, which takes at most 8,000 (LUAI_MAXCSTACK).
	maxCollected = 4096
	// maxNotified bounds the notifications of a partition in Redis, some 60 bytes each and 130 for each origin, so
	// that they don't fill Redis while no worker runs.
	maxNotified = 10_000
	// maxWriters is how many tasks are written at once.
	maxWriters = 4
	// drainTimeout bounds the writing after ctx has ended.
	drainTimeout = 3 * time.Second
)

// Notify tells the workers of an accepted job and the earlier ones of its account. It
// doesn't wait: a slow Redis must not delay an accept. A notification that is dropped, or
// lost with a killed process, costs only time: the sweep finds the job.
//
// origins are the origins of some of the jobs, by job, without "," or " "; mostly nil.
func (c *Client) Notify(accountID, position int64, jobID uuid.UUID, jobs int, origins map[uuid.UUID]string) {
	notification := Notification{AccountID: accountID, Position: position, JobID: jobID, Jobs: jobs}
	if len(origins) > 0 {
		notification.Origins = formatOrigins(origins)
	}
	select {
	case c.notifications <- notification:
	default:
		c.dropped()
	}
}

// Run writes the notifications of Notify until ctx ends, and then those that still wait:
//
//	writing ──ctx ends──▶ draining ──none is left, Redis fails, or drainTimeout──▶ end
//
// It needs no timer to make batches: what arrives during one write is the next batch.
func (c *Client) Run(ctx context.Context) error {
	redisCtx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ends drainTimeout after ctx
	defer cancel()
	context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })
	w := newWriter(c)
	for ctx.Err() == nil { // writing
		select {
		case first := <-c.notifications:
			w.write(redisCtx, w.collect(first))
		case <-ctx.Done():
		}
	}
	for written := true; written && redisCtx.Err() == nil; { // draining
		select {
		case first := <-c.notifications:
			written = w.write(redisCtx, w.collect(first))
		default:
			return nil
		}
	}
	return nil
}

// writer writes notifications. Only Run uses it.
type writer struct {
	*Client
	asynq *asynq.Client
}

func newWriter(c *Client) *writer {
	return &writer{Client: c, asynq: asynq.NewClientFromRedisClient(c.redis)}
}

// collect takes the notifications that have arrived since first, up to maxCollected, merges
// them and groups them by partition.
func (w *writer) collect(first Notification) map[int][]Notification {
	all := []Notification{first}
	for len(all) < maxCollected && len(w.notifications) > 0 {
		all = append(all, <-w.notifications)
	}
	partitions := map[int][]Notification{}
	for _, n := range Merge(all) {
		partition := Partition(n.AccountID, w.queues.Partitions)
		partitions[partition] = append(partitions[partition], n)
	}
	return partitions
}

// notifyScript adds notifications to a partition's list, if the list has space for them and
// a worker will take them. A worker will if a task is pending, or if a worker is awake.
//
// KEYS[1] the partition's notifications, KEYS[2] its pending list, KEYS[3] the key that
// exists while a worker is awake; ARGV[1] the bound of the list, ARGV[2…] the notifications.
// Returns 1 if it added the notifications, else needsTask or full.
var notifyScript = redis.NewScript(`
if redis.call("LLEN", KEYS[2]) == 0 and redis.call("EXISTS", KEYS[3]) == 0 then
	return 0
end
local kind = redis.call("TYPE", KEYS[1]).ok
if kind ~= "list" and kind ~= "none" then
	redis.call("DEL", KEYS[1])
end
if redis.call("LLEN", KEYS[1]) + #ARGV - 1 > tonumber(ARGV[1]) then
	return -1
end
redis.call("RPUSH", KEYS[1], unpack(ARGV, 2))
return 1`)

// The answers of notifyScript if it added nothing.
const (
	needsTask = 0
	full      = -1
)

// write adds the notifications to their partitions' lists, or enqueues tasks for them. After
// an error it drops the notifications that it has not written, and returns false: the sweep
// finds their jobs. A master that does not answer costs the partitions of the others nothing but
// its time-out.
//
// No notification stays in a list without a worker that takes it. If a task was pending, a worker
// takes that task first and then the notifications. If a worker was awake, its last script takes
// from the list and deletes the key that says it is awake, in one step. If that script finds a
// notification, the worker stays awake, or writes a task that takes the others.
//
// A worker that is killed, or that can't reach Redis, still counts as awake for up to awakeFor. The
// next task takes the notifications that are added until then, or the sweep finds their jobs.
func (w *writer) write(ctx context.Context, partitions map[int][]Notification) (written bool) {
	failpoint.Hit(failpoint.NotificationsCollected)
	answers, err := w.add(ctx, partitions)
	if err != nil {
		w.drop(err, partitions)
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout) // of all together
	defer cancel()
	var group errgroup.Group // one partition's error ends no other's call
	group.SetLimit(maxWriters)
	unanswered := false
	for partition, answer := range answers {
		notifications := partitions[partition]
		switch answer, err := answer.Int(); {
		case err != nil || answer == full:
			unanswered = unanswered || err != nil && !IsAnswer(err)
			w.drop(err, map[int][]Notification{partition: notifications})
		case answer == needsTask:
			group.Go(func() error { return w.enqueue(ctx, partition, notifications) })
		}
	}
	written = group.Wait() == nil && !unanswered
	failpoint.Hit(failpoint.NotificationsWritten)
	return written
}

// add runs notifyScript for each partition. It returns an error if another installation owns the
// queues.
func (w *writer) add(ctx context.Context, partitions map[int][]Notification) (answers map[int]*redis.Cmd, err error) {
	if err := w.queues.Owner.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answers = make(map[int]*redis.Cmd, len(partitions))
	var mu sync.Mutex // guards answers
	eachMaster(ctx, w.redis, w.queues, slices.Collect(maps.Keys(partitions)), func(some []int) {
		added := w.addAt(ctx, some, partitions)
		mu.Lock()
		defer mu.Unlock()
		maps.Copy(answers, added)
	})
	return answers, nil
}

// addAt is add for some partitions, which one master has.
//
// EVALSHA costs Redis 15 % less than EVAL. After a restart Redis does not know the script: it
// answers NOSCRIPT, and learns the script from an EVAL.
func (w *writer) addAt(ctx context.Context, some []int, partitions map[int][]Notification) map[int]*redis.Cmd {
	answers := w.run(ctx, notifyScript.EvalSha, some, partitions)
	var unknown []int
	for partition, answer := range answers {
		if redis.HasErrorPrefix(answer.Err(), "NOSCRIPT") {
			unknown = append(unknown, partition)
		}
	}
	if len(unknown) > 0 {
		maps.Copy(answers, w.run(ctx, notifyScript.Eval, unknown, partitions))
	}
	return answers
}

// evaluator is how a script is run: by EVAL or EVALSHA.
type evaluator func(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd

// run runs notifyScript for some partitions, in one round trip. The error of a partition stands in
// its answer.
func (w *writer) run(ctx context.Context, eval evaluator, some []int, partitions map[int][]Notification) map[int]*redis.Cmd {
	answers := make(map[int]*redis.Cmd, len(some))
	_, _ = w.redis.Pipelined(ctx, func(p redis.Pipeliner) error { // each answer has its error
		for _, partition := range some {
			args := []any{maxNotified}
			for _, n := range partitions[partition] {
				args = append(args, n.listEntry())
			}
			keys := []string{w.queues.notified(partition), w.queues.pending(partition), awakeOf(w.queues.Name(partition))}
			answers[partition] = eval(ctx, p, keys, args...)
		}
		return nil
	})
	return answers
}

// enqueue writes tasks for the jobs of a partition, of maxTaskJobs accounts each.
func (w *writer) enqueue(ctx context.Context, partition int, notifications []Notification) error {
	for some := range slices.Chunk(notifications, maxTaskJobs) {
		err := ctx.Err()
		if err == nil {
			err = enqueue(ctx, w.asynq, w.queues.Name(partition), some[0].JobID.String(), some)
		}
		if err != nil {
			w.drop(err, map[int][]Notification{partition: some})
			return err
		}
	}
	return nil
}

// drop counts notifications that were not written. The sweep finds their jobs.
func (w *writer) drop(err error, partitions map[int][]Notification) {
	for _, notifications := range partitions {
		for range notifications {
			w.dropped()
		}
	}
	w.log.Debug("notifications dropped", "error", err)
}
