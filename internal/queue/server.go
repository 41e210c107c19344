package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/crash"
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

// Handler works a ticket off: applies each job's account up to the job. rest are
// those that need another turn, behind the tickets that wait. An error brings the
// whole ticket back after a pause, the rest beside it; ErrUnknownJob gives it back for
// longer, for the installation that knows the job. After maxUnknown tries the task is
// archived, where an operator sees it.
type Handler func(ctx context.Context, jobs []uuid.UUID) (rest []uuid.UUID, err error)

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
}

// NewServer makes a server; Run starts it.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, prefer: newPreference(cfg.Redis, cfg.Queues, cfg.Log), client: asynq.NewClientFromRedisClient(cfg.Redis)}
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

func (s *Server) process(ctx context.Context, task *asynq.Task) error {
	jobs, err := parse(task)
	if err != nil {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	rest, err := s.cfg.Handler(ctx, jobs)
	// A kill before the acknowledgement leaves the ticket in a dead worker's
	// hands until its lease ends. Its jobs are finished, or the sweep's to find.
	crash.At(crash.TicketWorkedOff)
	if len(rest) > 0 {
		// A kill before the next tickets are written leaves this one to its lease,
		// and the jobs to the sweep. One after it leaves both; when this one comes
		// back it finds nothing to do for those that the others have brought on.
		crash.At(crash.MoreUnwritten)
		queue, _ := asynq.GetQueueName(ctx)
		id, _ := asynq.GetTaskID(ctx)
		err = cmp.Or(err, s.goOn(ctx, queue, id, rest))
		crash.At(crash.MoreWritten)
	}
	if tries, _ := asynq.GetRetryCount(ctx); errors.Is(err, ErrUnknownJob) && tries >= maxUnknown {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	return err
}

// goOn writes the tickets that go on where the one called id stopped: one for
// each job, named by it. So a name that is taken is always a ticket for the same
// job, the sweep's perhaps, and each account waits for its own trouble alone.
func (s *Server) goOn(ctx context.Context, queue, id string, jobs []uuid.UUID) error {
	for _, job := range jobs {
		if err := enqueue(ctx, s.client, queue, nextID(job, id), []uuid.UUID{job}); err != nil {
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
