package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// shutdownTimeout is how long a ticket in hand may take to finish. One
	// that takes longer goes back in line.
	shutdownTimeout = 8 * time.Second
	// forwardEvery is how often tickets whose pause is over come back in line.
	forwardEvery = 2 * time.Second
	// firstPause doubles with each try of a ticket, up to longestPause.
	firstPause   = 250 * time.Millisecond
	longestPause = time.Second
	// firstUnknown doubles with each try of a task of an unknown job, up to
	// longestUnknown: each retry looks like progress to the sweep of the installation that
	// knows the job, and soon ones would keep that sweep from helping. After maxUnknown
	// tries, some twenty minutes, the task is archived.
	firstUnknown   = 15 * time.Second
	longestUnknown = time.Minute
	maxUnknown     = 20
	// LongestPutOff is how long a ticket that is to be tried again is out of line, unless
	// its job is unknown.
	LongestPutOff = longestPause + forwardEvery
)

// Handler applies each job's account up to the job. remaining are those that need another
// turn, behind the tasks that wait; troubled are those whose accounts met err, each of which
// is tried again after a pause, and, where err is ErrUnknownJob, after longer ones, for the
// installation that knows the job: maxUnknown times, then its task is archived, where an
// operator sees it. An error without any brings all of them back.
type Handler func(ctx context.Context, jobs []Notification) (remaining, troubled []Notification, err error)

// ServerConfig says how to serve the partitions.
type ServerConfig struct {
	Redis   redis.UniversalClient
	Queues  Queues
	Handler Handler
	// IsFailure tells the errors that spend one of a ticket's tries.
	IsFailure func(error) bool
	Log       *slog.Logger
}

// Server hands tickets out: one Asynq server of concurrency 1 for each
// partition, because Asynq's concurrency is a server's, not a queue's, and a
// hot account must not occupy every slot.
type Server struct {
	cfg     ServerConfig
	prefer  *preference
	bell    *bell
	strays  *strays
	client  *asynq.Client
	servers []*asynq.Server

	batches         int           // of a task: maxBatches; tests have fewer
	linger, longest time.Duration // linger and longestTask; tests have longer ones
}

// NewServer makes a server; Run starts it.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, prefer: newPreference(cfg.Redis, cfg.Queues, cfg.Log), client: asynq.NewClientFromRedisClient(cfg.Redis), batches: maxBatches, linger: linger, longest: longestTask}
	s.bell = newBell(cfg.Redis, cfg.Queues, s.prefer, cfg.Log)
	for partition := range cfg.Queues.Partitions {
		name := cfg.Queues.Name(partition)
		one := asynqConfig(cfg, map[string]int{name: 1}, 1)
		one.TaskCheckInterval = time.Millisecond // the bell waits in its place
		one.Logger = logger{cfg.Log.With("partition", partition)}
		s.servers = append(s.servers, asynq.NewServerFromRedisClient(withoutCancels{s.bell}, one))
	}
	s.strays = &strays{cfg: cfg, handle: s.process}
	return s
}

// asynqConfig is that of an Asynq server of some queues, which handles so many tasks at once.
func asynqConfig(cfg ServerConfig, queues map[string]int, atOnce int) asynq.Config {
	return asynq.Config{
		Concurrency:              atOnce,
		Queues:                   queues,
		DelayedTaskCheckInterval: forwardEvery,
		ShutdownTimeout:          shutdownTimeout,
		RetryDelayFunc:           pause,
		IsFailure:                cfg.IsFailure,
		Logger:                   logger{cfg.Log},
		LogLevel:                 asynq.WarnLevel,
	}
}

// Strays returns ErrStrays while this process serves queues of more partitions than it has.
func (s *Server) Strays() error { return s.strays.err() }

// Run serves until ctx ends; then it takes no more tickets, lets those in hand
// finish within shutdownTimeout, and returns.
func (s *Server) Run(ctx context.Context) error {
	listening, stopListening := context.WithCancel(context.WithoutCancel(ctx))
	serving, stopServing := context.WithCancel(ctx)
	var listener errgroup.Group
	listener.Go(func() error {
		s.bell.listen(listening)
		return nil
	})
	listener.Go(func() error {
		s.bell.watch(listening)
		return nil
	})
	listener.Go(func() error {
		s.prefer.run(serving)
		return nil
	})
	listener.Go(func() error {
		s.strays.run(serving)
		return nil
	})
	defer func() {
		stopServing()
		stopListening()
		_ = listener.Wait() // returns no error
	}()
	for _, server := range s.servers {
		if err := server.Start(asynq.HandlerFunc(s.process)); err != nil {
			return fmt.Errorf("start queue server: %w", err)
		}
	}
	<-ctx.Done()
	s.bell.close()
	var group errgroup.Group
	for _, server := range s.servers {
		group.Go(func() error {
			server.Shutdown()
			return nil
		})
	}
	return group.Wait()
}

// process handles a task, and the notifications of its partition in batches: those that come
// while one batch is in hand are taken with the next. It ends where none have come for linger.
func (s *Server) process(ctx context.Context, task *asynq.Task) error {
	named, err := parse(task.Payload())
	if err != nil {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	queue, _ := asynq.GetQueueName(ctx)
	more, pending := s.take(ctx, queue, maxBatch-len(named), stayAwake)
	batch := slices.Concat(named, more)
	for end, batches := time.Now().Add(s.longest), 1; len(batch) > 0; batches++ {
		err = s.handle(ctx, queue, batch, named)
		if err != nil || batches == s.batches || time.Now().After(end) || s.bell.isClosed() {
			err = cmp.Or(err, s.passOn(ctx, queue))
			break
		}
		batch, pending = s.next(ctx, queue, pending)
		named = nil
	}
	if tries, _ := asynq.GetRetryCount(ctx); errors.Is(err, ErrUnknownJob) && tries >= maxUnknown {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	return err
}

// handle handles a batch of jobs, some of which the task names. It returns the error with
// which the task is to be tried again, for these alone: the others have tasks of their own.
func (s *Server) handle(ctx context.Context, queue string, batch, named []Notification) error {
	remaining, troubled, err := s.cfg.Handler(ctx, batch)
	// A kill before the acknowledgement leaves the task in a dead worker's
	// hands until its lease ends. Its jobs are finished, or the sweep's to find.
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
	// A kill before the next tasks are written leaves this one to its lease,
	// and the jobs to the sweep. One after it leaves both; when this one comes
	// back it finds nothing to do for those that the others have applied.
	failpoint.Hit(failpoint.RemainingUnwritten)
	id, _ := asynq.GetTaskID(ctx)
	err = s.goOn(ctx, queue, id, remaining)
	failpoint.Hit(failpoint.RemainingWritten)
	return cmp.Or(retried, err)
}

const (
	// maxBatch is how many notifications a batch has at most.
	maxBatch = 64
	// maxBatches bounds the batches of a task, well within ticketTimeout.
	maxBatches = 128
	// longestTask is when a task takes no more notifications, so that a pause of its
	// partition and the tasks behind it have their effect.
	longestTask = 2 * time.Second
	// linger is how long a task waits for more notifications. A notification that a lingering
	// task takes costs Redis and the worker a quarter of what a task of its own does. Well
	// within awakeFor.
	linger = 500 * time.Millisecond
)

// next takes the partition's next notifications, and waits for some for linger, unless other
// tasks are pending. Where none come, the worker takes no more.
func (s *Server) next(ctx context.Context, queue string, pending bool) (batch []Notification, stillPending bool) {
	idle := time.NewTimer(s.linger)
	defer idle.Stop()
	for !pending && s.bell.awaitNotified(ctx, queue, idle.C) {
		if batch, pending = s.take(ctx, queue, maxBatch, stayAwake); len(batch) > 0 {
			return batch, pending
		}
	}
	return s.take(ctx, queue, maxBatch, sleepIfNone)
}

// takeScript takes a partition's oldest notifications, and says whether its worker goes on
// to take more.
//
// KEYS[1] the notifications, KEYS[2] says that a worker takes them, KEYS[3] the pending list;
// ARGV[1] how many at most, ARGV[2] stayAwake, sleep or sleepIfNone, ARGV[3] for how many
// milliseconds a worker that is awake is believed to be. Returns how many tasks are pending,
// and the notifications.
var takeScript = redis.NewScript(`
local taken = redis.call("LPOP", KEYS[1], ARGV[1])
if ARGV[2] == "awake" or ARGV[2] == "" and taken then
	redis.call("SET", KEYS[2], 1, "PX", ARGV[3])
else
	redis.call("DEL", KEYS[2])
end
taken = taken or {}
table.insert(taken, 1, tostring(redis.call("LLEN", KEYS[3])))
return taken`)

// What a worker does that has taken notifications.
const (
	stayAwake   = "awake"
	sleep       = "asleep"
	sleepIfNone = ""
)

// awakeFor is how long a worker is believed to take a partition's notifications that has taken
// some. What is added after its death waits for so long, or for the sweep.
const awakeFor = 2 * time.Second

// take takes up to n of a partition's notifications, the oldest, and tells whether tasks are
// pending. It takes none where Redis does not answer, and passes over what can't be read: the
// sweep finds the jobs.
//
// A kill after it leaves the jobs to the sweep, too.
func (s *Server) take(ctx context.Context, queue string, n int, then string) (taken []Notification, pending bool) {
	keys := []string{notifiedOf(queue), awakeOf(queue), keysOf(queue) + "pending"}
	lines, err := takeScript.Run(ctx, s.cfg.Redis, keys, n, then, awakeFor.Milliseconds()).StringSlice()
	if err != nil {
		s.cfg.Log.Warn("could not take notifications; the sweep finds their jobs", "queue", queue, "error", err)
		return nil, true
	}
	pending, lines = lines[0] != "0", lines[1:]
	for _, line := range lines {
		one, err := parseNotification(line)
		if err != nil {
			s.cfg.Log.Warn("could not read a notification; the sweep finds its job", "queue", queue, "error", err)
			continue
		}
		taken = append(taken, one)
	}
	failpoint.Hit(failpoint.NotificationsTaken)
	return taken, pending
}

// passOn writes a task for the notifications that are left, if any are.
func (s *Server) passOn(ctx context.Context, queue string) error {
	next, _ := s.take(ctx, queue, 1, sleep)
	if len(next) == 0 {
		return nil
	}
	return enqueue(ctx, s.client, queue, next[0].JobID.String(), next)
}

// goOn writes the tasks that go on where the one called id stopped: one for
// each job, named by it. So a name that is taken is always a task for the same
// job, the sweep's perhaps, and each account waits for its own trouble alone.
func (s *Server) goOn(ctx context.Context, queue, id string, jobs []Notification) error {
	for _, job := range jobs {
		if err := enqueue(ctx, s.client, queue, nextID(job.JobID, id), []Notification{job}); err != nil {
			return err
		}
	}
	return nil
}

func pause(tries int, err error, _ *asynq.Task) time.Duration {
	first, longest := firstPause, longestPause
	if errors.Is(err, ErrUnknownJob) {
		first, longest = firstUnknown, longestUnknown
	}
	return min(first<<min(tries, 10), longest)
}

// withoutCancels is a client under which an Asynq server does not subscribe to the names
// of tasks that are to be canceled: each server would hold a connection for that. Nothing
// is lost: a task that is canceled would be tried again. Asynq asks again every 5 s, and
// a closed subscription answers without Redis.
//
// TestFewConnections fails where a new Asynq subscribes otherwise.
type withoutCancels struct{ redis.UniversalClient }

// Subscribe returns a closed subscription.
func (w withoutCancels) Subscribe(ctx context.Context, _ ...string) *redis.PubSub {
	closed := w.UniversalClient.Subscribe(ctx)
	_ = closed.Close() // it has no connection yet
	return closed
}

// noCancels begins what Asynq says of that.
const noCancels = "cannot subscribe to cancelation channel"

// logger hands Asynq's messages on.
type logger struct{ *slog.Logger }

func (l logger) Debug(args ...any) { l.Logger.Debug(fmt.Sprint(args...)) }
func (l logger) Info(args ...any)  { l.Logger.Info(fmt.Sprint(args...)) }
func (l logger) Warn(args ...any)  { l.Logger.Warn(fmt.Sprint(args...)) }

// Error logs a message, but for noCancels.
func (l logger) Error(args ...any) {
	if message := fmt.Sprint(args...); !strings.HasPrefix(message, noCancels) {
		l.Logger.Error(message)
	}
}

// Fatal logs a message.
func (l logger) Fatal(args ...any) { l.Logger.Error(fmt.Sprint(args...)) }
