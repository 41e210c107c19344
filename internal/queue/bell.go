package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long an empty queue is left alone, unless its bell rings.
const (
	withBell    = 3 * time.Second
	withoutBell = 100 * time.Millisecond // Redis forbids CONFIG SET, or is not there
)

const (
	// checkEvery is how often the bell makes sure that Redis still sends events.
	checkEvery = 10 * time.Second
	// watchEvery is how often it looks at the queues of other workers. manyWait is how
	// many tasks wait in one that is too much for its worker, or manyNotified notifications.
	watchEvery   = 500 * time.Millisecond
	manyWait     = 8
	manyNotified = 8 * maxBatch
)

const (
	// maxOrphans is how many names of lost tasks one script removes, in about a
	// millisecond of Redis's time, and maxAsks how often one dequeue asks again.
	maxOrphans = 200
	maxAsks    = 50
)

// bell is a Redis client under which Asynq need not poll: a dequeue that finds
// its queue empty is held until Redis says that something was pushed onto it,
// or some time passes. Asynq itself asks again and again.
//
// It listens for those queues alone that this worker is preferred for. Redis would
// wake every listener for every ticket, and all but one in vain. A queue of another
// worker it leaves to that one, unless a ticket is stuck there or many wait: then it
// helps for as long as it finds any.
//
// It leans on how Asynq 0.26 dequeues: one EVALSHA a queue with four keys, the
// first the pending list, the second the pause. TestBellKnowsAsynq fails where
// that changes; the worst that happens then is polling.
type bell struct {
	redis.UniversalClient
	log      *slog.Logger
	prefer   *preference
	lists    map[string]string        // the pending lists, by the channel that tells of them or of their notifications. Never changed
	told     map[string]chan struct{} // what is told of a channel's events. Never changed
	dequeues map[string]*dequeues     // by pending list. Never changed
	withBell time.Duration            // how long an empty queue is held; tests wait longer,
	every    time.Duration            // also to look at other workers'
	rings    atomic.Bool              // Redis sends the events, and we may hear them,
	heard    bool                     // for it has let us listen once. listen's own
	closed   chan struct{}
}

// dequeues are those of one pending list. There is one at a time.
type dequeues struct {
	pushed   chan struct{} // holds one ring
	notified chan struct{} // says that notifications were added; holds one
	helping  bool          // the last one had another worker's ticket. The dequeues' own,
	task     bool          // as is that it had any
}

func newBell(client redis.UniversalClient, queues Queues, prefer *preference, log *slog.Logger) *bell {
	b := &bell{
		UniversalClient: client,
		log:             log,
		prefer:          prefer,
		lists:           make(map[string]string, 2*queues.Partitions),
		told:            make(map[string]chan struct{}, 2*queues.Partitions),
		dequeues:        make(map[string]*dequeues, queues.Partitions),
		withBell:        withBell,
		every:           watchEvery,
		closed:          make(chan struct{}),
	}
	for partition := range queues.Partitions {
		list := queues.line(partition)
		d := &dequeues{pushed: make(chan struct{}, 1), notified: make(chan struct{}, 1)}
		b.dequeues[list] = d
		for key, told := range map[string]chan struct{}{list: d.pushed, queues.notified(partition): d.notified} {
			channel := channelOf(client, key)
			b.lists[channel], b.told[channel] = list, told
		}
	}
	return b
}

// channelOf is where Redis tells what happens to a key.
func channelOf(client redis.UniversalClient, key string) string {
	database := 0 // a cluster has no other
	if one, ok := client.(*redis.Client); ok {
		database = one.Options().DB
	}
	return fmt.Sprintf("__keyspace@%d__:%s", database, key)
}

// EvalSha runs the script; a dequeue that found nothing it runs once more when
// the bell has rung. A ring that came since the last dequeue is kept, so none
// is missed in between.
func (b *bell) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if !isDequeue(keys) || b.dequeues[keys[0]] == nil {
		return b.UniversalClient.EvalSha(ctx, sha, keys, args...)
	}
	if b.prefer.queues.Owner.Err() != nil {
		b.wait(nil, b.patience())
		return nothing(ctx)
	}
	mine, other := b.dequeues[keys[0]], b.prefer.isOther(keys[0])
	if other && !mine.helping && !b.wait(mine.pushed, b.patience()) {
		return nothing(ctx)
	}
	cmd := b.dequeue(ctx, mine, sha, keys, args)
	mine.helping = other && cmd.Err() == nil
	switch err := cmd.Err(); {
	case err == nil, redis.HasErrorPrefix(err, "NOSCRIPT"):
	case !errors.Is(err, redis.Nil):
		// Asynq asks again at once after an error. A Redis that is down or
		// starting should not be stormed.
		b.wait(nil, withoutBell)
	case other: // the next dequeue waits
	case b.wait(mine.pushed, b.patience()):
		return b.dequeue(ctx, mine, sha, keys, args)
	}
	return cmd
}

// nothing is what Asynq's script answers for an empty list.
func nothing(ctx context.Context) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(redis.Nil)
	return cmd
}

// dequeue runs Asynq's script, and again at once where it came upon an orphan: it
// answers nothing for one, as it does for an empty list. After a task one empty answer
// is believed, so that a list that runs empty costs Redis nothing; orphans behind a
// task wait for the next dequeue, which patience bounds.
func (b *bell) dequeue(ctx context.Context, mine *dequeues, sha string, keys []string, args []any) *redis.Cmd {
	for asks := 0; ; asks++ {
		cmd := b.UniversalClient.EvalSha(ctx, sha, keys, args...)
		err := cmd.Err()
		believed := mine.task
		if mine.task = err == nil; mine.task || !IsAnswer(err) || redis.HasErrorPrefix(err, "NOSCRIPT") {
			return cmd
		}
		if asks == maxAsks || believed && errors.Is(err, redis.Nil) || !b.removeOrphans(ctx, keys[0]) {
			return cmd
		}
	}
}

// orphansScript removes orphans: names in a pending list, or among the active tasks, whose
// task is not there any more, because Redis evicted it or a person deleted it, or is
// of a wrong type. Asynq's dequeue moves one to the active tasks, where it stays for ever.
// A task's own key is written together with its name, so none that is being written is removed.
//
// KEYS[1] the pending list; ARGV[1] what the partition's keys begin with, ARGV[2] how
// many at most. Returns how many it removed.
var orphansScript = redis.NewScript(`
local function orphan(id)
	local key = ARGV[1] .. "t:" .. id
	if redis.call("TYPE", key).ok == "hash" and redis.call("HEXISTS", key, "msg") == 1 then
		return false
	end
	redis.call("DEL", key)
	redis.pcall("ZREM", ARGV[1] .. "lease", id)
	return true
end
local removed = 0
if redis.call("EXISTS", ARGV[1] .. "paused") == 1 then
	return removed
end
for _, id in ipairs(redis.call("LRANGE", ARGV[1] .. "active", 0, ARGV[2] - 1)) do
	if orphan(id) then
		redis.call("LREM", ARGV[1] .. "active", 1, id)
		removed = removed + 1
	end
end
for _, id in ipairs(redis.call("LRANGE", KEYS[1], -ARGV[2], -1)) do
	if orphan(id) then
		redis.call("LREM", KEYS[1], -1, id)
		removed = removed + 1
	end
end
return removed`)

// removeOrphans removes up to maxOrphans of a partition, and tells whether there were
// any. The sweep finds their jobs.
func (b *bell) removeOrphans(ctx context.Context, list string) bool {
	removed, err := orphansScript.Run(ctx, b.UniversalClient, []string{list}, strings.TrimSuffix(list, "pending"), maxOrphans).Int()
	if err != nil {
		b.log.Debug("can't look for orphaned names of tasks", "error", err)
	}
	if removed > 0 {
		b.log.Warn("removed names of tasks that Redis has lost; the sweep finds their jobs", "list", list, "names", removed)
	}
	return removed > 0
}

// patience is how long an empty queue is held.
func (b *bell) patience() time.Duration {
	if !b.rings.Load() {
		return withoutBell
	}
	return b.withBell
}

func isDequeue(keys []string) bool {
	return len(keys) == 4 && strings.HasSuffix(keys[0], ":pending") && strings.HasSuffix(keys[1], ":paused")
}

func (b *bell) wait(pushed <-chan struct{}, patience time.Duration) (rang bool) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-pushed:
		return true
	case <-timer.C:
	case <-b.closed:
	}
	return false
}

// awaitNotified waits until notifications are added to those of a queue, and returns false
// where there is something else to do: a task is pending, idle has passed, or the worker stops.
// It does not wait where Redis does not tell this worker of the queue.
func (b *bell) awaitNotified(ctx context.Context, queue string, idle <-chan time.Time) bool {
	list := keysOf(queue) + "pending"
	mine := b.dequeues[list]
	if mine == nil || !b.rings.Load() || b.prefer.isOther(list) {
		return false
	}
	for {
		select {
		case <-mine.notified:
			return true
		case <-mine.pushed: // the task in hand perhaps, whose event came late
			if n, err := b.LLen(ctx, list).Result(); n > 0 || err != nil {
				return false
			}
		case <-idle:
			return false
		case <-b.closed:
			return false
		}
	}
}

// close lets every held dequeue go.
func (b *bell) close() {
	close(b.closed)
}

func (b *bell) isClosed() bool {
	select {
	case <-b.closed:
		return true
	default:
		return false
	}
}

// listen rings for what Redis says was pushed, until ctx ends. go-redis
// subscribes again after a lost connection.
func (b *bell) listen(ctx context.Context) {
	subscription := b.Subscribe(ctx) // to nothing yet: it is told at once to follow
	defer subscription.Close()       //nolint:errcheck // nothing depends on it any more
	events := subscription.ChannelWithSubscriptions()
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	var err error // of the last follow
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			if b.heard {
				b.askForEvents(ctx)
			}
			if err != nil {
				err = b.follow(ctx, subscription)
			}
		case <-b.prefer.changed:
			err = b.follow(ctx, subscription)
		case event, open := <-events:
			if !open {
				return
			}
			b.hear(ctx, event)
		}
	}
}

// follow listens for the queues that this worker is preferred for, and for the
// workers that leave.
func (b *bell) follow(ctx context.Context, subscription *redis.PubSub) error {
	want, unwanted := []string{b.prefer.queues.workersKey()}, []string(nil)
	for channel, list := range b.lists {
		if b.prefer.isOther(list) {
			unwanted = append(unwanted, channel)
		} else {
			want = append(want, channel)
		}
	}
	err := subscription.Subscribe(ctx, want...)
	if len(unwanted) > 0 { // none would mean all
		err = errors.Join(err, subscription.Unsubscribe(ctx, unwanted...))
	}
	if err != nil {
		b.log.Debug("can't listen to Redis yet", "error", err)
	}
	return err
}

// hear takes what a subscription brings. Before the first event of a queue, and
// after a lost connection, the queue may have filled unheard, and workers may have
// come or left: it rings for that, and looks.
func (b *bell) hear(ctx context.Context, event any) {
	workers := b.prefer.queues.workersKey()
	switch event := event.(type) {
	case *redis.Subscription:
		switch {
		case event.Kind != "subscribe":
		case event.Channel == workers:
			b.heard = true
			b.askForEvents(ctx)
			b.ringOwn()
			b.prefer.lookAgain()
		default:
			b.tellOf(event.Channel)
		}
	case *redis.Message:
		switch {
		case event.Channel == workers:
			b.prefer.lookAgain()
		case strings.HasSuffix(event.Payload, "push"): // l when written, r when given back
			b.tellOf(event.Channel)
		}
	}
}

func (b *bell) tellOf(channel string) {
	if told := b.told[channel]; told != nil {
		tell(told)
	}
}

func (b *bell) ring(list string) {
	if dequeues := b.dequeues[list]; dequeues != nil {
		tell(dequeues.pushed)
	}
}

// ringOwn rings for all but the queues of other workers, which are watched.
func (b *bell) ringOwn() {
	for list := range b.dequeues {
		if !b.prefer.isOther(list) {
			b.ring(list)
		}
	}
}

// watch looks at the queues of other workers until ctx ends.
func (b *bell) watch(ctx context.Context) {
	tick := time.NewTicker(b.every)
	defer tick.Stop()
	var oldest map[string]string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			oldest = b.lookAtOthers(ctx, oldest)
		}
	}
}

// lookAtOthers finds the oldest ticket of each queue of other workers, by pending list,
// and rings for those that are stuck, where it was the oldest before, too, or many wait.
// The worker that is preferred for it has died without a word, or has its hands full.
func (b *bell) lookAtOthers(ctx context.Context, before map[string]string) (oldest map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	asked, notified := map[string]*redis.StringSliceCmd{}, map[string]*redis.IntCmd{}
	oldest = map[string]string{}
	_, err := b.Pipelined(ctx, func(p redis.Pipeliner) error {
		for list := range b.dequeues {
			if b.prefer.isOther(list) {
				asked[list] = p.LRange(ctx, list, -manyWait, -1)
				notified[list] = p.LLen(ctx, notifiedOf(queueOf(list)))
			}
		}
		return nil
	})
	if err != nil {
		b.log.Debug("don't know what is stuck at other workers", "error", err)
	}
	for list, cmd := range asked {
		tickets := cmd.Val()
		if len(tickets) == 0 { // or it was not answered
			continue
		}
		oldest[list] = tickets[len(tickets)-1]
		if oldest[list] == before[list] || len(tickets) == manyWait || notified[list].Val() > manyNotified {
			b.ring(list)
		}
	}
	return oldest
}

// askForEvents makes Redis send the events of lists, beside whatever it sends
// to others. Where it may not, queues are polled.
func (b *bell) askForEvents(ctx context.Context) {
	err := b.mergeFlags(ctx)
	if err != nil {
		b.log.Warn("Redis sends no keyspace events; polling", "error", err)
	}
	b.rings.Store(err == nil)
}

const eventFlags = "notify-keyspace-events"

func (b *bell) mergeFlags(ctx context.Context) error {
	have, err := b.ConfigGet(ctx, eventFlags).Result()
	if err != nil {
		return err
	}
	flags := have[eventFlags]
	if want := mergedFlags(flags); want != flags {
		return b.ConfigSet(ctx, eventFlags, want).Err()
	}
	return nil
}

// mergedFlags adds to the flags what the bell needs: K, keyspace events, of l,
// lists (A stands for l too).
// https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/
func mergedFlags(flags string) string {
	if !strings.Contains(flags, "K") {
		flags += "K"
	}
	if !strings.ContainsAny(flags, "lA") {
		flags += "l"
	}
	return flags
}
