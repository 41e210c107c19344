package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// shutdownTimeout is how long an active task may take to finish when the server stops.
	// Asynq puts one that takes longer back into the pending list.
	shutdownTimeout = 8 * time.Second
	// forwardEvery is how often Asynq moves tasks whose retry delay is over to their pending
	// list.
	forwardEvery = 2 * time.Second
	// firstRetryDelay doubles with each attempt of a task, up to longestRetryDelay.
	firstRetryDelay   = 250 * time.Millisecond
	longestRetryDelay = time.Second
	// firstUnknownDelay doubles with each attempt of a task of an unknown job, up to
	// longestUnknownDelay. Both are longer than those above: each retry looks like progress to
	// the sweep of the installation that knows the job, and that sweep would wait. After
	// maxUnknownAttempts, some twenty minutes, the task is archived.
	firstUnknownDelay   = 15 * time.Second
	longestUnknownDelay = time.Minute
	maxUnknownAttempts  = 20
	// LongestRetry bounds how long a task waits for its next attempt, unless its job is unknown.
	LongestRetry = longestRetryDelay + forwardEvery
)

// Handler applies each job's account up to the job. It returns in remaining the jobs that need
// another task, which comes after the pending ones, and in troubled the jobs whose accounts had
// the error err. Each troubled job is tried again after a delay. If err is ErrUnknownJob, the
// delays are longer, and after maxUnknownAttempts the task is archived, where an operator sees
// it. If err comes without a troubled job, all jobs are tried again.
type Handler func(ctx context.Context, jobs []Notification) (remaining, troubled []Notification, err error)

// ServerConfig configures a Server.
type ServerConfig struct {
	Redis   redis.UniversalClient
	Queues  Queues
	Handler Handler
	// IsFailure is true for an error that counts as an attempt of the task.
	IsFailure func(error) bool
	Log       *slog.Logger
	// IsRedisAway is true while the log reports an outage of Redis. The queue then logs failed calls
	// at debug level. Nil for never.
	IsRedisAway func() bool
	// Paused, unless nil, is called with the number of paused partitions each time Redis has reported it.
	Paused func(partitions int)
}

// Server gives tasks to the handler. It runs an Asynq server of concurrency 1 for each
// partition: Asynq's concurrency belongs to a server, not to a queue, and a hot account must
// not occupy every slot.
type Server struct {
	cfg        ServerConfig
	assignment *assignment
	waiting    *waitingClient
	extra      *extraQueues
	watch      *watch
	client     *asynq.Client
	servers    []*asynq.Server

	batches             int           // maxBatches; fewer in tests
	linger, longestTask time.Duration // linger and longestTask; longer in tests
}

// NewServer makes a server; Run starts it.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{
		cfg: cfg, assignment: newAssignment(cfg.Redis, cfg.Queues, cfg.Log), client: asynq.NewClientFromRedisClient(cfg.Redis),
		batches: maxBatches, linger: linger, longestTask: longestTask,
	}
	s.waiting = newWaitingClient(cfg.Redis, cfg.Queues, s.assignment, cfg.Log)
	for partition := range cfg.Queues.Partitions {
		name := cfg.Queues.Name(partition)
		one := asynqConfig(cfg, map[string]int{name: 1}, 1)
		// This does not poll Redis each millisecond. It is Asynq's pause after a dequeue that
		// found nothing, and waitingClient ends that dequeue only after a wake-up, or after
		// longestWait: 3 s with events, 100 ms without.
		one.TaskCheckInterval = time.Millisecond
		one.Logger = logger{cfg.Log.With("partition", partition), cfg.IsRedisAway}
		s.servers = append(s.servers, asynq.NewServerFromRedisClient(withoutCancels{s.waiting}, one))
	}
	s.extra = &extraQueues{cfg: cfg, handle: s.process}
	s.watch = &watch{client: cfg.Redis, queues: cfg.Queues, log: cfg.Log, count: cfg.Paused}
	return s
}

// asynqConfig configures an Asynq server of some queues that handles concurrency tasks at once.
func asynqConfig(cfg ServerConfig, queues map[string]int, concurrency int) asynq.Config {
	return asynq.Config{
		Concurrency:              concurrency,
		Queues:                   queues,
		DelayedTaskCheckInterval: forwardEvery,
		ShutdownTimeout:          shutdownTimeout,
		RetryDelayFunc:           retryDelay,
		IsFailure:                cfg.IsFailure,
		Logger:                   logger{cfg.Log, cfg.IsRedisAway},
		LogLevel:                 asynq.WarnLevel,
	}
}

// ExtraQueues returns ErrExtraQueues while this process serves queues of more partitions than
// it has.
func (s *Server) ExtraQueues() error { return s.extra.err() }

// HasExtraQueues returns whether this process serves queues of more partitions than it has, and
// whether that is known: Redis has listed its queues lately.
func (s *Server) HasExtraQueues() (hasExtra, isKnown bool) {
	return s.extra.err() != nil, s.extra.answer.isRecent()
}

// Paused returns ErrPaused, with their queues, while an operator has paused partitions.
func (s *Server) Paused() error { return s.watch.err() }

// Run serves until ctx ends. Then it takes no more tasks, lets the active ones finish within
// shutdownTimeout, and returns.
func (s *Server) Run(ctx context.Context) error {
	listening, stopListening := context.WithCancel(context.WithoutCancel(ctx))
	serving, stopServing := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { s.waiting.listen(listening) })
	helpers.Go(func() { s.waiting.pollOthers(listening) })
	helpers.Go(func() { s.assignment.run(serving) })
	helpers.Go(func() { s.extra.run(serving) })
	helpers.Go(func() { s.watch.run(serving) })
	defer func() {
		stopServing()
		stopListening()
		helpers.Wait()
	}()
	for _, server := range s.servers {
		if err := server.Start(asynq.HandlerFunc(s.process)); err != nil {
			return fmt.Errorf("start queue server: %w", err)
		}
	}
	<-ctx.Done()
	s.waiting.close()
	var servers sync.WaitGroup
	for _, server := range s.servers {
		servers.Go(server.Shutdown)
	}
	servers.Wait()
	return nil
}

// process handles a task. Then it handles, batch by batch, the notifications that have arrived
// for the partition meanwhile. It ends when none has arrived for linger, or, if the partition has moved
// to another worker, when none is left. Once longestTask has passed, or after maxBatches, an error or the stop of the
// server, it ends with its current batch, and writes a task for the notifications that remain.
func (s *Server) process(ctx context.Context, task *asynq.Task) error {
	named, err := parse(task.Payload())
	if err != nil {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	setOrigins(named, task.Headers())
	queue, _ := asynq.GetQueueName(ctx)
	notified, more := s.take(ctx, queue, maxTaken-len(named), stayAwake)
	batch := slices.Concat(named, notified)
	for end, batches := time.Now().Add(s.longestTask), 1; len(batch) > 0; batches++ {
		err = s.handle(ctx, queue, batch, named)
		if err != nil || batches == s.batches || time.Now().After(end) || s.waiting.isClosed() {
			err = cmp.Or(err, s.enqueueNotified(ctx, queue))
			break
		}
		batch, more = s.next(ctx, queue, more)
		named = nil
	}
	if attempts, _ := asynq.GetRetryCount(ctx); errors.Is(err, ErrUnknownJob) && attempts >= maxUnknownAttempts {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	return err
}

// handle handles a batch of jobs. named are those that the task itself names. If one of them is
// troubled, handle returns its error, with which Asynq tries the task again. For every other
// job that is troubled or remaining it writes a task.
func (s *Server) handle(ctx context.Context, queue string, batch, named []Notification) error {
	remaining, troubled, err := s.cfg.Handler(ctx, batch)
	// A kill before the acknowledgement leaves the task active until its lease ends. Its jobs
	// are finished, or the sweep finds them.
	failpoint.Hit(failpoint.TaskHandled)
	if err != nil && len(troubled) == 0 {
		troubled = batch
	}
	remaining = slices.Clone(remaining)
	var retried error
	for _, one := range troubled {
		if slices.ContainsFunc(named, func(n Notification) bool { return n.JobID == one.JobID }) {
			retried = err
		} else {
			remaining = append(remaining, one)
		}
	}
	if len(remaining) == 0 {
		return retried
	}
	// After a kill before the next tasks are written, this task stays active until its lease
	// ends, and the sweep finds the jobs. After a kill once they are written, this task comes
	// back too, and finds the jobs of the next ones finished.
	failpoint.Hit(failpoint.RemainingUnwritten)
	id, _ := asynq.GetTaskID(ctx)
	err = s.enqueueNext(ctx, queue, id, remaining)
	failpoint.Hit(failpoint.RemainingWritten)
	return cmp.Or(retried, err)
}

const (
	// maxTaken bounds the notifications of a batch.
	maxTaken = 64
	// maxBatches bounds the batches of a task, well within taskTimeout.
	maxBatches = 128
	// longestTask is after how long a task ends with its current batch, so that the tasks behind
	// it are handled, and an operator's pause of the partition takes effect.
	longestTask = 2 * time.Second
	// linger is how long a task waits for more notifications: a task of its own for each would
	// cost Redis and the worker more, and each job two more round trips. It is well within awakeFor.
	linger = 1200 * time.Millisecond
)

// next takes the partition's next notifications. If more is false, it waits for them, linger
// at most. An empty batch ends the task.
func (s *Server) next(ctx context.Context, queue string, more bool) (batch []Notification, stillMore bool) {
	idle := time.NewTimer(s.linger)
	defer idle.Stop()
	for !more && s.waiting.awaitNotified(ctx, queue, idle.C) {
		if batch, more = s.take(ctx, queue, maxTaken, stayAwake); len(batch) > 0 {
			return batch, more
		}
	}
	return s.take(ctx, queue, maxTaken, sleepIfNone)
}

// takeScript takes a partition's oldest notifications. It also writes whether the partition's
// worker is awake, which means that the worker will take more.
//
// KEYS[1] the notifications, KEYS[2] the key that exists while a worker is awake, KEYS[3] the
// pending list; ARGV[1] how many to take at most, ARGV[2] stayAwake, sleep or sleepIfNone,
// ARGV[3] awakeFor in milliseconds. Returns the number of pending tasks and of notifications
// that remain, as one sum, and then the notifications taken.
var takeScript = redis.NewScript(`
local taken = redis.call("LPOP", KEYS[1], ARGV[1])
if ARGV[2] == "awake" or ARGV[2] == "" and taken then
	redis.call("SET", KEYS[2], 1, "PX", ARGV[3])
else
	redis.call("DEL", KEYS[2])
end
taken = taken or {}
table.insert(taken, 1, tostring(redis.call("LLEN", KEYS[1]) + redis.call("LLEN", KEYS[3])))
return taken`)

// ARGV[2] of takeScript: whether the worker stays awake and will take more notifications.
const (
	stayAwake   = "awake"
	sleep       = "asleep"
	sleepIfNone = ""
)

// awakeFor is how long a worker counts as awake after it has taken notifications. For that long
// after its death the API still adds notifications to the list; the next task takes them, or the
// sweep finds their jobs.
const awakeFor = 2 * time.Second

// take takes up to n of a partition's notifications, the oldest first, and returns whether
// there is more to do: tasks are pending, or notifications remain. It takes none if Redis does
// not answer, and skips malformed ones: the sweep finds the jobs. If all were malformed, the script
// took the worker for awake, so take runs it again, at most as often as the list is long.
//
// A kill loses the notifications that were taken; the sweep finds their jobs too.
func (s *Server) take(ctx context.Context, queue string, n int, then string) (taken []Notification, more bool) {
	keys := []string{notifiedOf(queue), awakeOf(queue), keysOf(queue) + "pending"}
	answer, err := takeScript.Run(ctx, s.cfg.Redis, keys, n, then, awakeFor.Milliseconds()).StringSlice()
	if err != nil {
		s.cfg.Log.Log(ctx, levelOf(slog.LevelWarn, s.cfg.IsRedisAway), "could not take notifications", "queue", queue, "error", err)
		return nil, true
	}
	more = answer[0] != "0"
	for _, text := range answer[1:] {
		one, err := parseListEntry(text)
		if err != nil {
			s.cfg.Log.Warn("malformed notification", "queue", queue, "error", err)
			continue
		}
		taken = append(taken, one)
	}
	if len(taken) == 0 && len(answer) > 1 {
		return s.take(ctx, queue, n, then)
	}
	failpoint.Hit(failpoint.NotificationsTaken)
	return taken, more
}

// enqueueNotified writes a task for one of the remaining notifications, if there are any. That
// task takes the others.
func (s *Server) enqueueNotified(ctx context.Context, queue string) error {
	next, _ := s.take(ctx, queue, 1, sleep)
	if len(next) == 0 {
		return nil
	}
	return enqueue(ctx, s.client, queue, next[0].JobID.String(), next)
}

// enqueueNext writes the tasks that follow the task called id, one for each job, so that an
// account with an error delays no other. Each is named after its job. If a task of that name
// exists, perhaps the sweep's, it is for the same job.
func (s *Server) enqueueNext(ctx context.Context, queue, id string, jobs []Notification) error {
	for _, job := range jobs {
		if err := enqueue(ctx, s.client, queue, nextID(job.JobID, id), []Notification{job}); err != nil {
			return err
		}
	}
	return nil
}

// retryDelay is the pause before the next attempt of a task that was retried so many times.
func retryDelay(retries int, err error, _ *asynq.Task) time.Duration {
	first, longest := firstRetryDelay, longestRetryDelay
	if errors.Is(err, ErrUnknownJob) {
		first, longest = firstUnknownDelay, longestUnknownDelay
	}
	return min(first<<min(retries, 10), longest)
}

// withoutCancels is a client with which an Asynq server does not subscribe to cancelations of
// tasks: each server would need a connection for that. Nothing is lost, because a canceled task
// would be tried again. Asynq asks again every 5 s, and a closed subscription answers without
// Redis.
//
// TestFewConnections fails where a new Asynq subscribes in another way.
type withoutCancels struct{ redis.UniversalClient }

// Subscribe returns a closed subscription.
func (w withoutCancels) Subscribe(ctx context.Context, _ ...string) *redis.PubSub {
	closed := w.UniversalClient.Subscribe(ctx)
	_ = closed.Close() // it has no connection yet
	return closed
}

// noCancels begins Asynq's message about a closed subscription.
const noCancels = "cannot subscribe to cancelation channel"

// logger logs Asynq's messages.
type logger struct {
	log         *slog.Logger
	isRedisAway func() bool
}

// levelOf is the level of a line about a failed call: debug while Redis is away.
func levelOf(level slog.Level, isRedisAway func() bool) slog.Level {
	if isRedisAway != nil && isRedisAway() {
		return slog.LevelDebug
	}
	return level
}

func (l logger) write(level slog.Level, args []any) {
	ctx := context.Background()
	if level = levelOf(level, l.isRedisAway); l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "asynq message", "text", fmt.Sprint(args...))
	}
}

// Debug logs a message.
func (l logger) Debug(args ...any) { l.write(slog.LevelDebug, args) }

// Info logs a message.
func (l logger) Info(args ...any) { l.write(slog.LevelInfo, args) }

// Warn logs a message.
func (l logger) Warn(args ...any) { l.write(slog.LevelWarn, args) }

// Error logs a message, except noCancels.
func (l logger) Error(args ...any) {
	if !strings.HasPrefix(fmt.Sprint(args...), noCancels) {
		l.write(slog.LevelError, args)
	}
}

// Fatal logs a message.
func (l logger) Fatal(args ...any) { l.write(slog.LevelError, args) }
