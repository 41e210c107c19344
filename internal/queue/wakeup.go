package queue

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long a dequeue of an empty pending list waits if no wake-up comes.
const (
	waitWithEvents    = 3 * time.Second
	waitWithoutEvents = 100 * time.Millisecond // Redis forbids CONFIG SET, or does not answer
)

// pollEvery is how often the pending lists of other workers are polled.
const pollEvery = 500 * time.Millisecond

// waitingClient is a Redis client that saves an Asynq server from polling. A dequeue of an
// empty pending list waits in EvalSha for the partition's wake-up: Redis's event that a task
// was pushed onto the list. The wait also ends after longestWait, and Asynq dequeues again.
//
// The client subscribes only to the pending lists that are assigned to this worker: Redis wakes
// every subscriber for every task, and would wake all but one for nothing. It takes tasks from
// another worker's list only if the oldest one does not move or many are pending. Then it helps
// until that list is empty.
//
// It relies on how Asynq 0.26 dequeues: one EVALSHA a queue with four keys, the first the
// pending list, the second the pause. TestWakeUpFitsAsynq fails where a new Asynq changes
// that; the worst that happens then is polling.
type waitingClient struct {
	redis.UniversalClient
	log        *slog.Logger
	queues     Queues
	assignment *assignment
	lists      map[string]string        // by channel, the pending list of the partition; read only
	signals    map[string]chan struct{} // by channel, what an event signals; read only
	dequeuers  map[string]*dequeuer     // by pending list; read only
	wait       time.Duration            // waitWithEvents; longer in tests
	pollEvery  time.Duration            // longer in tests
	events     atomic.Bool              // every master has accepted a subscription, and sends events
	closed     chan struct{}
}

// dequeuer is the state of a pending list's dequeues, of which there is one at a time.
type dequeuer struct {
	woken    chan struct{} // signals a wake-up (buffer of 1)
	notified chan struct{} // signals that notifications were added (buffer of 1)
	helping  bool          // the last dequeue found a task of another worker
	found    bool          // the last dequeue found a task
}

func newWaitingClient(client redis.UniversalClient, queues Queues, assignment *assignment, log *slog.Logger) *waitingClient {
	w := &waitingClient{
		UniversalClient: client,
		log:             log,
		queues:          queues,
		assignment:      assignment,
		lists:           make(map[string]string, 2*queues.Partitions),
		signals:         make(map[string]chan struct{}, 2*queues.Partitions),
		dequeuers:       make(map[string]*dequeuer, queues.Partitions),
		wait:            waitWithEvents,
		pollEvery:       pollEvery,
		closed:          make(chan struct{}),
	}
	for partition := range queues.Partitions {
		list := queues.pending(partition)
		own := &dequeuer{woken: make(chan struct{}, 1), notified: make(chan struct{}, 1)}
		w.dequeuers[list] = own
		for key, signals := range map[string]chan struct{}{list: own.woken, queues.notified(partition): own.notified} {
			channel := channelOf(client, key)
			w.lists[channel], w.signals[channel] = list, signals
		}
	}
	return w
}

// EvalSha runs the script. A dequeue that finds nothing waits for a wake-up and runs once
// more. A wake-up that came since the last dequeue is kept, so that none is missed. Several are
// kept as one: the next dequeues empty the list. If Redis lost the event, the wait ends after
// longestWait, and Asynq dequeues again.
func (w *waitingClient) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if !isDequeue(keys) || w.dequeuers[keys[0]] == nil {
		return w.UniversalClient.EvalSha(ctx, sha, keys, args...)
	}
	if w.queues.Owner.Err() != nil {
		w.await(nil, w.longestWait())
		return emptyList(ctx)
	}
	own, elsewhere := w.dequeuers[keys[0]], w.assignment.isElsewhere(keys[0])
	if elsewhere && !own.helping && !w.await(own.woken, w.longestWait()) {
		return emptyList(ctx)
	}
	cmd := w.dequeue(ctx, own, sha, keys, args)
	own.helping = elsewhere && cmd.Err() == nil
	switch err := cmd.Err(); {
	case err == nil, redis.HasErrorPrefix(err, "NOSCRIPT"):
	case !errors.Is(err, redis.Nil):
		// Asynq dequeues again at once after an error. This pause protects a Redis that
		// is down or starts.
		w.await(nil, waitWithoutEvents)
	case elsewhere: // the next dequeue waits
	case w.await(own.woken, w.longestWait()):
		return w.dequeue(ctx, own, sha, keys, args)
	}
	return cmd
}

// emptyList is the answer of Asynq's script for an empty pending list.
func emptyList(ctx context.Context) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(redis.Nil)
	return cmd
}

// dequeue runs Asynq's script. The script answers for an orphan as for an empty list. So after
// an empty answer dequeue removes orphans, and runs the script again if there were any.
//
// It does not look for orphans after the first empty answer that follows a task. Usually the list
// has just become empty, and the search would cost Redis one more script. If there were orphans
// behind the task, the next dequeue finds them, at most longestWait later.
func (w *waitingClient) dequeue(ctx context.Context, own *dequeuer, sha string, keys []string, args []any) *redis.Cmd {
	for asked := 0; ; asked++ {
		cmd := w.UniversalClient.EvalSha(ctx, sha, keys, args...)
		err := cmd.Err()
		justEmptied := own.found
		if own.found = err == nil; own.found || !IsAnswer(err) || redis.HasErrorPrefix(err, "NOSCRIPT") {
			return cmd
		}
		if asked == maxDequeues || justEmptied && errors.Is(err, redis.Nil) || !w.removeOrphans(ctx, keys[0]) {
			return cmd
		}
	}
}

// longestWait bounds how long a dequeue waits.
func (w *waitingClient) longestWait() time.Duration {
	if !w.events.Load() {
		return waitWithoutEvents
	}
	return w.wait
}

func isDequeue(keys []string) bool {
	return len(keys) == 4 && strings.HasSuffix(keys[0], ":pending") && strings.HasSuffix(keys[1], ":paused")
}

// await waits for a wake-up. It returns false after longest, or when the client is closed.
func (w *waitingClient) await(woken <-chan struct{}, longest time.Duration) bool {
	timer := time.NewTimer(longest)
	defer timer.Stop()
	select {
	case <-woken:
		return true
	case <-timer.C:
	case <-w.closed:
	}
	return false
}

// awaitNotified waits, in the name of an active task, until notifications are added to its
// queue, or events may have been lost. It returns false when the task should end: another task is
// pending, idle has fired, or the worker stops. It returns false at once if Redis does not send this
// worker the queue's events. After endOthers it returns true, and then false.
func (w *waitingClient) awaitNotified(ctx context.Context, queue string, idle <-chan time.Time) bool {
	list := keysOf(queue) + "pending"
	own := w.dequeuers[list]
	if own == nil || !w.events.Load() || w.assignment.isElsewhere(list) {
		return false
	}
	for {
		select {
		case <-own.notified:
			return true
		case <-own.woken: // perhaps the late event of this task itself
			if n, err := w.LLen(ctx, list).Result(); n > 0 || err != nil {
				return false
			}
		case <-idle:
			return false
		case <-w.closed:
			return false
		}
	}
}

// close ends every wait, also later ones.
func (w *waitingClient) close() {
	close(w.closed)
}

func (w *waitingClient) isClosed() bool {
	select {
	case <-w.closed:
		return true
	default:
		return false
	}
}

// signal signals an event of a channel.
func (w *waitingClient) signal(channel string) {
	if signals := w.signals[channel]; signals != nil {
		signal(signals)
	}
}

// wake wakes the dequeue of a pending list.
func (w *waitingClient) wake(list string) {
	if dequeuer := w.dequeuers[list]; dequeuer != nil {
		signal(dequeuer.woken)
	}
}

// wakeOwn wakes the partitions that are assigned to this worker: their dequeues, and the tasks that
// linger.
func (w *waitingClient) wakeOwn() {
	for list, own := range w.dequeuers {
		if !w.assignment.isElsewhere(list) {
			signal(own.woken)
			signal(own.notified)
		}
	}
}

// endOthers ends the tasks that linger on partitions of other workers. Redis sends this worker no more
// events of those, while the API still adds notifications for a worker that is awake. Such a
// task takes what was added, and says in the same script that it sleeps.
func (w *waitingClient) endOthers() {
	for list, own := range w.dequeuers {
		if w.assignment.isElsewhere(list) {
			signal(own.notified)
		}
	}
}

// pollOthers polls the pending lists of other workers until ctx ends.
func (w *waitingClient) pollOthers(ctx context.Context) {
	tick := time.NewTicker(w.pollEvery)
	defer tick.Stop()
	var oldest map[string]string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			oldest = w.helpOthers(ctx, oldest)
		}
	}
}

// helpOthers wakes the partitions whose assigned worker is dead or has too many tasks: the
// oldest task is the same as before, or many are pending. It returns the oldest task of each
// pending list of another worker.
func (w *waitingClient) helpOthers(ctx context.Context, before map[string]string) (oldest map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var others []int
	for partition := range w.queues.Partitions {
		if w.assignment.isElsewhere(w.queues.pending(partition)) {
			others = append(others, partition)
		}
	}
	oldest = make(map[string]string, len(others))
	var err error // the first one
	for i, found := range pollPending(ctx, w.UniversalClient, w.queues, others) {
		err = cmp.Or(err, found.Err)
		if found.Oldest == "" {
			continue
		}
		list := w.queues.pending(others[i])
		if oldest[list] = found.Oldest; found.Oldest == before[list] || found.many {
			w.wake(list)
		}
	}
	if err != nil {
		w.log.Debug("could not poll the pending lists of other workers", "error", err)
	}
	return oldest
}
