package queue

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// heard is what a subscription told.
type heard struct {
	jobs      chan []Finished
	listening chan bool
}

// hear subscribes until the test ends, as a process of its own does.
func hear(t *testing.T, client redis.UniversalClient, queues Queues) heard {
	t.Helper()
	h := heard{jobs: make(chan []Finished, maxUnpublished), listening: make(chan bool, maxUnpublished)}
	s := NewSubscription(client, queues, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx, func(jobs []Finished) { h.jobs <- jobs }, func(listening bool) { h.listening <- listening })
	}()
	t.Cleanup(func() {
		cancel()
		receive(t, done)
	})
	return h
}

// want waits until the subscription is there, or is not.
func (h heard) want(t *testing.T, listening bool) {
	t.Helper()
	for receive(t, h.listening) != listening {
	}
}

// publisher publishes until stop, or the test ends.
func publisher(t *testing.T, client redis.UniversalClient, queues Queues, dropped func(int)) (p *Publisher, stop func()) {
	t.Helper()
	p = NewPublisher(client, queues, slog.New(slog.DiscardHandler), dropped)
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return p.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return p, stop
}

func finishedJobs(n int) (jobs []Finished) {
	for i := range n {
		jobs = append(jobs, Finished{JobID: uuid.New(), AccountID: int64(i) << 40})
	}
	return jobs
}

// Every subscription hears of every finished job, also of those that are published last. A
// message of another form says nothing.
func TestFinished(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	one, two := hear(t, client, queues), hear(t, connect(t, server.URL()), queues)
	other := hear(t, client, Queues{Prefix: "other", Partitions: partitions})
	for _, h := range []heard{one, two, other} {
		h.want(t, true)
	}
	if err := client.Publish(t.Context(), queues.finishedChannel(), "no jobs").Err(); err != nil {
		t.Fatal(err)
	}
	p, stop := publisher(t, client, queues, func(int) { t.Error("dropped") })
	want := finishedJobs(3 * maxPublished)
	for some := range slices.Chunk(want, 48) {
		p.Publish(slices.Clone(some))
	}
	stop()
	for _, h := range []heard{one, two} {
		var got []Finished
		for len(got) < len(want) {
			got = append(got, receive(t, h.jobs)...)
		}
		if !slices.Equal(got, want) {
			t.Error("other jobs than those that were published, or in another order")
		}
	}
	if len(other.jobs) > 0 {
		t.Error("an installation hears of another's jobs")
	}
}

// A subscription says when it is lost, also where Redis only freezes, and when it is there again.
func TestFinished_SubscriptionLost(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	h := hear(t, connect(t, server.URL()), queues)
	h.want(t, true)
	thaw := testenv.Freeze(t, server.PID())
	h.want(t, false)
	thaw()
	h.want(t, true)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	h.want(t, false)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.want(t, true)
}

// Where another installation owns the queues, nothing is published and nothing heard.
func TestFinished_OtherInstallation(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	log := slog.New(slog.DiscardHandler)
	first, second := queues, queues
	first.Owner, second.Owner = NewOwner(client, queues.Prefix, uuid.New(), log), NewOwner(client, queues.Prefix, uuid.New(), log)
	first.Owner.Check(t.Context())
	second.Owner.Check(t.Context())
	h := hear(t, client, first)
	h.want(t, true)
	hear(t, client, second).want(t, false)
	dropped := make(chan int, 1)
	p, _ := publisher(t, client, second, func(jobs int) { dropped <- jobs })
	p.Publish(finishedJobs(2))
	if n := receive(t, dropped); n != 2 || len(h.jobs) > 0 {
		t.Errorf("%d jobs dropped, want 2; %d messages heard", n, len(h.jobs))
	}
}

// While Redis hangs Publish doesn't wait, and the jobs beyond its bound are counted.
func TestFinished_RedisHangs(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	var dropped atomic.Int64
	p, stop := publisher(t, client, queues, func(jobs int) { dropped.Add(int64(jobs)) })
	thaw := testenv.Freeze(t, server.PID())
	const batches = 4 * maxUnpublished
	for range batches {
		p.Publish(finishedJobs(1)) // would block for good if it waited
	}
	stop() // gives up after one time-out
	thaw()
	if n := dropped.Load(); n < batches-2*maxUnpublished-1 || n > batches { // some wait, some are in its hands
		t.Errorf("%d of %d jobs dropped", n, batches)
	}
}

func TestParseFinished(t *testing.T) {
	t.Parallel()
	want := append(finishedJobs(3), Finished{JobID: uuid.Max, AccountID: -1})
	message := string(finishedMessage(want))
	if got := parseFinished(message); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, malformed := range []string{message[1:], message + "x", "{}", strings.Repeat("x", finishedBytes-1)} {
		if got := parseFinished(malformed); got != nil {
			t.Errorf("%q: got %v", malformed, got)
		}
	}
}
