package queue

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/failpoint"
)

// Notification says that an account has queued jobs, up to one of them.
type Notification struct {
	JobID     uuid.UUID
	AccountID int64 // 0 where it is not known
	Position  int64 // of the job; 0 where it is not known
	Jobs      int   // how many of the account's jobs it is for; a wrong number costs time alone
}

// Notify tells the workers of an accepted job and those of its account before it, soon and
// without making its caller wait: a Redis that is slow or down must not hold an accept up.
// A notification that is lost, or that a kill takes with the process, costs time alone: the
// sweep finds the job.
func (c *Client) Notify(accountID, position int64, jobID uuid.UUID, jobs int) {
	select {
	case c.notifications <- Notification{AccountID: accountID, Position: position, JobID: jobID, Jobs: jobs}:
	default:
		c.lost()
	}
}

// Run writes what Notify was asked for until ctx ends, and then what is left, for
// as long as Redis takes it and no longer than drainTimeout. It uses no timer: what comes
// while it writes is written together next.
func (c *Client) Run(ctx context.Context) error {
	writing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })
	renew := time.NewTicker(announceEvery)
	defer renew.Stop()
	w := newWriter(c)
	for ctx.Err() == nil {
		select {
		case first := <-c.notifications:
			w.write(writing, w.collect(first))
		case <-renew.C:
			w.asynq = asynq.NewClientFromRedisClient(c.redis)
		case <-ctx.Done():
		}
	}
	for written := true; written && writing.Err() == nil; {
		select {
		case first := <-c.notifications:
			written = w.write(writing, w.collect(first))
		default:
			return nil
		}
	}
	return nil
}

// writer writes notifications. It is Run's alone.
type writer struct {
	*Client
	asynq *asynq.Client
}

func newWriter(c *Client) *writer {
	return &writer{Client: c, asynq: asynq.NewClientFromRedisClient(c.redis)}
}

// collect takes the notifications that are there with the first, up to maxCollected, by
// partition.
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

// Merge makes one notification of those of an account, for the job with the highest
// position: it is for the jobs before that, too. The accounts stay in their order.
func Merge(all []Notification) (merged []Notification) {
	at := make(map[int64]int, len(all))
	for _, n := range all {
		i, known := at[n.AccountID]
		switch {
		case !known || n.AccountID == 0:
			at[n.AccountID] = len(merged)
			merged = append(merged, n)
		case n.Position > merged[i].Position:
			n.Jobs += merged[i].Jobs
			merged[i] = n
		default:
			merged[i].Jobs += n.Jobs
		}
	}
	return merged
}

// notifyScript adds notifications to those of a partition, where a worker takes them or a
// task is pending that will, and the list has room.
//
// KEYS[1] the partition's notifications, KEYS[2] its pending list, KEYS[3] says that a worker
// takes them; ARGV[1] how many notifications the list holds at most, and then those to be
// added. Returns 1 where it has added them, 0 where a task is needed, and -1 where there is
// no room.
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

// What notifyScript returns where it has added nothing.
const (
	needsTask = 0
	noRoom    = -1
)

// write adds the notifications to their partitions' lists, or enqueues tasks for them. No
// wake-up is lost: a worker takes notifications after it took the task from the pending
// list, so it finds all that were added while the task was pending; and the script that
// finds none says in the same step that the worker takes no more.
//
// The first Redis error within ringTimeout ends it: the sweep finds the other jobs.
func (w *writer) write(ctx context.Context, partitions map[int][]Notification) (written bool) {
	failpoint.Hit(failpoint.NotificationsCollected)
	answers, err := w.add(ctx, partitions)
	if err != nil {
		w.lose(err, partitions)
		return false
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for partition, answer := range answers {
		notifications := partitions[partition]
		switch added, err := answer.Int(); {
		case err != nil || added == noRoom:
			w.lose(err, map[int][]Notification{partition: notifications})
		case added == needsTask:
			group.Go(func() error { return w.enqueue(ctx, partition, notifications) })
		}
	}
	written = group.Wait() == nil
	failpoint.Hit(failpoint.NotificationsWritten)
	return written
}

// add runs notifyScript for each partition. An error is of a Redis that does not answer, or
// whose queues are another installation's.
func (w *writer) add(ctx context.Context, partitions map[int][]Notification) (answers map[int]*redis.Cmd, err error) {
	if err := w.queues.Owner.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	answers = make(map[int]*redis.Cmd, len(partitions))
	_, err = w.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition, notifications := range partitions {
			args := []any{maxNotified}
			for _, n := range notifications {
				args = append(args, n.String())
			}
			keys := []string{w.queues.notified(partition), w.queues.line(partition), awakeOf(w.queues.Name(partition))}
			answers[partition] = notifyScript.Eval(ctx, p, keys, args...)
		}
		return nil
	})
	if IsAnswer(err) { // it concerns its partition
		err = nil
	}
	return answers, err
}

// enqueue writes tasks for the jobs, of maxShared accounts each.
func (w *writer) enqueue(ctx context.Context, partition int, notifications []Notification) error {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	for some := range slices.Chunk(notifications, maxShared) {
		err := ctx.Err()
		if err == nil {
			err = enqueue(ctx, w.asynq, w.queues.Name(partition), some[0].JobID.String(), some)
		}
		if err != nil {
			w.lose(err, map[int][]Notification{partition: some})
			return err
		}
	}
	return nil
}

// lose leaves jobs to the sweep.
func (w *writer) lose(err error, partitions map[int][]Notification) {
	for _, notifications := range partitions {
		for range notifications {
			w.lost()
		}
	}
	w.log.Debug("notifications lost, the sweep will find their jobs", "error", err)
}
