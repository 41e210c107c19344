package queue

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// No wake-up is lost, whether a notification comes while a task lingers, while it ends or after that: without
// polling, and without a sweep, each one is handled. So it is while workers start and stop.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		linger, longestTask time.Duration
		pause               time.Duration // before each notification, at most
		moves               int           // how often another worker starts and stops
	}{
		"Lingering": {linger: time.Hour, longestTask: time.Hour},
		"Ending":    {linger: time.Millisecond, longestTask: time.Hour, pause: 3 * time.Millisecond},
		"Longest":   {linger: time.Hour, longestTask: 2 * time.Millisecond, pause: time.Millisecond},
		"Moving":    {linger: time.Hour, longestTask: time.Hour, pause: time.Millisecond, moves: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRace(t, func(s *Server) {
				s.waiting.wait, s.waiting.pollEvery = time.Hour, time.Hour
				s.linger, s.longestTask = test.linger, test.longestTask
			})
			r.serve()
			stop := r.notify(test.pause)
			for range test.moves {
				r.awaitEach(rounds)
				end := r.serve()
				r.awaitEach(rounds)
				end()
			}
			r.awaitEach(rounds)
			stop()
		})
	}
}

// rounds is how many notifications of each partition a race handles before it goes on.
const rounds = 40

// race are clients, each of an account in a partition of its own, that notify again as soon as their
// notification is handled.
type race struct {
	t       *testing.T
	tasks   *Client
	prepare func(*Server)
	handled [partitions]chan uuid.UUID // of each partition
	count   [partitions]chan struct{}
}

func newRace(t *testing.T, prepare func(*Server)) *race {
	t.Helper()
	client := connect(t, testenv.Redis(t))
	r := &race{t: t, prepare: prepare}
	r.tasks = NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") })
	for n := range partitions {
		r.handled[n], r.count[n] = make(chan uuid.UUID, rounds), make(chan struct{})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return r.tasks.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		_ = group.Wait() // it returns nil
	})
	return r
}

// serve runs a worker until end, or until the test ends.
func (r *race) serve() (end func()) {
	r.t.Helper()
	server := NewServer(ServerConfig{
		Redis: r.tasks.redis, Queues: queues, Handler: r.handle, Log: slog.New(slog.DiscardHandler), IsFailure: func(error) bool { return true },
	})
	r.prepare(server)
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	end = sync.OnceFunc(func() {
		cancel()
		if err := group.Wait(); err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(end)
	return end
}

func (r *race) handle(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
	for _, job := range jobs {
		select {
		case r.handled[Partition(job.AccountID, partitions)] <- job.JobID:
		default: // full of what was handled again: the client has its own
		}
	}
	return nil, nil, nil
}

// notify starts the clients. Each pauses for up to pause before it notifies.
func (r *race) notify(pause time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var clients sync.WaitGroup
	for n := range partitions {
		clients.Go(func() {
			account := accountOf(n)
			for position := int64(1); ; position++ {
				if pause > 0 {
					<-time.After(rand.N(pause))
				}
				id := uuid.New()
				r.tasks.Notify(account, position, id, 1, nil)
				for got := uuid.Nil; got != id; {
					select {
					case got = <-r.handled[n]: // of an earlier one, whose task was handled again
					case <-ctx.Done():
						return
					}
				}
				select {
				case r.count[n] <- struct{}{}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		clients.Wait()
	})
	r.t.Cleanup(stop)
	return stop
}

// awaitEach waits until each client's next n notifications are handled.
func (r *race) awaitEach(n int) {
	r.t.Helper()
	var all sync.WaitGroup
	for partition := range partitions {
		all.Go(func() {
			for round := range n {
				select {
				case <-r.count[partition]:
				case <-time.After(longestRound):
					r.t.Errorf("partition %d: the notification %d of %d is not handled", partition, round+1, n)
					return
				}
			}
		})
	}
	all.Wait()
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// longestRound is how long a busy machine may take for one notification.
const longestRound = 30 * time.Second
