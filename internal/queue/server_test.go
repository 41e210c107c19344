package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/testenv"
)

const partitions = 16

var queues = queuesOf(partitions)

func queuesOf(partitions int) Queues {
	return Queues{Prefix: "test", Partitions: partitions}
}

// manyPartitions make a ticket for nearly every account.
const manyPartitions = 1024

func connect(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	client, err := Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// serve runs a server until the test ends; prepare may change it before.
func serve(t testing.TB, client redis.UniversalClient, handler Handler, prepare func(*Server)) {
	t.Helper()
	server := NewServer(ServerConfig{
		Redis: client, Queues: queues, Handler: handler, Log: slog.New(slog.DiscardHandler),
		IsFailure: func(error) bool { return true },
	})
	prepare(server)
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func asIs(*Server) {}

func ticketsOf(client redis.UniversalClient) *Client {
	return NewClient(client, queues, slog.New(slog.DiscardHandler), func() {})
}

// receive waits for the handler, with a bound.
func receive[T any](t testing.TB, from <-chan T) (got T) {
	t.Helper()
	const patience = 30 * time.Second
	select {
	case got = <-from:
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return got
}

// countDequeues counts the dequeues that reach Redis.
type countDequeues struct{ n atomic.Int64 }

func (c *countDequeues) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *countDequeues) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (c *countDequeues) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); cmd.Name() == "evalsha" && len(args) > 6 {
			if keys := args[2]; keys == 4 {
				c.n.Add(1)
			}
		}
		return next(ctx, cmd)
	}
}

// With an endless patience a ticket is handed out only where the bell rings for
// it, and an idle queue is not asked at all. That fails when Asynq changes how
// it lays out its keys or dequeues.
func TestBellKnowsAsynq(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	dequeues := new(countDequeues)
	client.AddHook(dequeues)
	handled := make(chan uuid.UUID, 1)
	handler := func(_ context.Context, jobs []uuid.UUID) ([]uuid.UUID, error) {
		handled <- jobs[0]
		return nil, nil
	}
	serve(t, client, handler, func(s *Server) { s.bell.withBell = time.Hour })
	const tickets = 20
	for n := range int64(tickets) {
		ticket := Ticket{AccountID: n, JobID: uuid.New()}
		if err := ticketsOf(client).Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, handled); got != ticket.JobID {
			t.Fatalf("handed out %s, want %s", got, ticket.JobID)
		}
	}
	// At the start and at the subscription each queue is asked, after that
	// only for a ticket: once for it and twice to find that there is no other.
	if most := int64(4*partitions + 4*tickets); dequeues.n.Load() > most || dequeues.n.Load() < tickets {
		t.Errorf("%d dequeues for %d tickets, want at most %d", dequeues.n.Load(), tickets, most)
	}
}

// Redis has lost tasks and kept their names, or has something else at their keys: the
// tasks behind them are handed out soon, and no name stays.
func TestServePassesOrphans(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	const orphans = 100
	good := map[uuid.UUID]bool{}
	for n := range int64(3 * orphans) {
		ticket := Ticket{AccountID: 1, JobID: uuid.New()}
		if err := ticketsOf(client).Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		key := keysOf(queues.Of(1)) + "t:" + ticket.JobID.String()
		var err error
		switch {
		case n%orphans == orphans-1:
			good[ticket.JobID] = true
		case n%2 == 0:
			err = client.Del(t.Context(), key).Err()
		default:
			err = client.Set(t.Context(), key, "of a wrong type", 0).Err()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	handled := make(chan uuid.UUID, len(good))
	serve(t, client, func(_ context.Context, jobs []uuid.UUID) ([]uuid.UUID, error) {
		handled <- jobs[0]
		return nil, nil
	}, asIs)
	for range len(good) {
		if got := receive(t, handled); !good[got] {
			t.Errorf("handed out %s, which Redis has lost", got)
		}
	}
	prefix := keysOf(queues.Of(1)) + ""
	testenv.Eventually(t, "no name to stay", func() bool {
		return client.Exists(t.Context(), prefix+"pending", prefix+"active", prefix+"lease").Val() == 0
	})
}

// While no worker takes tasks a pending list grows to its bound and no further.
func TestPendingListIsBounded(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	list := queues.line(Partition(1, partitions))
	names := make([]any, maxPending)
	for i := range names {
		names[i] = uuid.NewString()
	}
	if err := client.LPush(t.Context(), list, names...).Err(); err != nil {
		t.Fatal(err)
	}
	var left atomic.Int64
	tickets := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { left.Add(1) })
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	group.Go(func() error { return tickets.Run(ctx) })
	position := int64(0)
	testenv.Eventually(t, "jobs to be left to the sweep", func() bool {
		position++
		tickets.Ring(1, position, uuid.New())
		return left.Load() > 0
	})
	cancel()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	// Until it has looked at the list once, and while it writes, it knows of less.
	const unknown = 20
	if n := client.LLen(t.Context(), list).Val(); n > maxPending+unknown {
		t.Errorf("%d tasks in the pending list, want no more than about %d", n, maxPending)
	}
}

// A server that forbids CONFIG SET is polled.
func TestServeWithoutEvents(t *testing.T) {
	t.Parallel()
	admin := connect(t, testenv.Redis(t))
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config").Err(); err != nil {
		t.Fatal(err)
	}
	opt := admin.(*redis.Client).Options()
	client := redis.NewClient(&redis.Options{Addr: opt.Addr, Username: "app", Password: "secret"})
	t.Cleanup(func() { _ = client.Close() })
	handled := make(chan uuid.UUID, 1)
	serve(t, client, func(_ context.Context, jobs []uuid.UUID) ([]uuid.UUID, error) {
		handled <- jobs[0]
		return nil, nil
	}, asIs)
	for n := range int64(3) {
		ticket := Ticket{AccountID: n, JobID: uuid.New()}
		if err := ticketsOf(client).Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		receive(t, handled)
	}
}

// A Redis that crashes and comes back empty is served on, and its bell rings.
func TestServeThroughRestart(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	handled := make(chan uuid.UUID, 1)
	var theBell *bell
	serve(t, client, func(_ context.Context, jobs []uuid.UUID) ([]uuid.UUID, error) {
		handled <- jobs[0]
		return nil, nil
	}, func(s *Server) { theBell = s.bell })
	for range 2 {
		ticket := Ticket{AccountID: 1, JobID: uuid.New()}
		testenv.Eventually(t, "the ticket to be written", func() bool { return ticketsOf(client).Enqueue(t.Context(), ticket) == nil })
		if got := receive(t, handled); got != ticket.JobID {
			t.Errorf("handed out %s, want %s", got, ticket.JobID)
		}
		testenv.Eventually(t, "the bell", func() bool {
			flags, err := client.ConfigGet(t.Context(), eventFlags).Result()
			return err == nil && mergedFlags(flags[eventFlags]) == flags[eventFlags] && theBell.rings.Load()
		})
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// What needs another turn has it, by itself and under a name of its own: where the
// sweep has written a ticket of the same name meanwhile, it is one for the same job.
func TestMore(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	type turn struct {
		name string
		jobs []uuid.UUID
	}
	const partition = 3
	jobs := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
	name := func(n, again int) string { return Ticket{JobID: jobs[n], Again: again}.id() }
	rest := map[string][]uuid.UUID{name(0, 0): jobs[1:], name(1, 1): jobs[1:2]}
	tickets := asynq.NewClientFromRedisClient(client)
	handled := make(chan turn, 5)
	serve(t, client, func(ctx context.Context, jobs []uuid.UUID) (_ []uuid.UUID, err error) {
		id, _ := asynq.GetTaskID(ctx)
		handled <- turn{id, jobs}
		if id == name(0, 0) {
			err = enqueue(ctx, tickets, queues.Name(partition), name(0, 1), jobs[:1]) // the sweep does
		}
		return rest[id], err
	}, asIs)
	if err := newWriter(ticketsOf(client)).writeOne(t.Context(), shared{partition: partition, jobs: jobs}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []turn{
		{name(0, 0), jobs}, {name(0, 1), jobs[:1]}, {name(1, 1), jobs[1:2]}, {name(2, 1), jobs[2:]}, {name(1, 2), jobs[1:2]},
	} {
		if got := receive(t, handled); got.name != want.name || !slices.Equal(got.jobs, want.jobs) {
			t.Errorf("turn %d was that of %s for %v, want %s for %v", i, got.name, got.jobs, want.name, want.jobs)
		}
	}
}

// Rings whose partition has a long line wait until it is short, or for long enough,
// and come to one ticket then.
func TestRingsWaitForAShortLine(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queuesOf(1), slog.New(slog.DiscardHandler), func() { t.Error("a ring was lost") }))
	var jobs []uuid.UUID
	next := func() {
		jobs = append(jobs, uuid.New())
		w.add(ring{accountID: int64(len(jobs)), position: 1, jobID: jobs[len(jobs)-1]})
	}
	due := func(now time.Time) (got []uuid.UUID) {
		for _, ticket := range w.due(now, longestWait) {
			got = append(got, ticket.jobs...)
			if err := w.writeOne(t.Context(), ticket); err != nil {
				t.Fatal(err)
			}
		}
		return got
	}
	want := func(what string, got, want []uuid.UUID) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: tickets for %v, want %v", what, got, want)
		}
	}
	began := time.Now() // whatever Redis takes, no time passes
	for n := range longLine {
		next()
		want("a short line", due(began), jobs[n:])
	}
	next()
	next()
	want("a long line", due(began), nil)
	w.look(t.Context())
	want("a line that is long still", due(began), nil)
	if err := client.LPop(t.Context(), queues.line(0)).Err(); err != nil {
		t.Fatal(err)
	}
	want("a line that nobody has looked at", due(began), nil)
	w.look(t.Context())
	want("a line that is short again", due(began), jobs[longLine:])
	next()
	want("a long line again", due(began), nil)
	want("a long wait", due(time.Now().Add(longestWait)), jobs[longLine+2:])
	if n := client.LLen(t.Context(), queues.line(0)).Val(); n != longLine+1 {
		t.Errorf("%d tickets in line, want %d: rings that wait together share one", n, longLine+1)
	}
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.look(t.Context())
	if len(w.lines) > 0 {
		t.Errorf("%d lines are looked at, want none: they are empty, and nobody waits", len(w.lines))
	}
}

// Rings that come soon after another's ticket come to one ticket, though their line is
// empty: the longer Redis takes for a ticket, the longer its writer rests.
func TestRingsWaitWhileTheWriterRests(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	client, slow := connect(t, url), connect(t, url)
	calls := make(chan struct{}, 1)
	slow.AddHook(delay{after: 100 * time.Millisecond, first: calls}) // two calls a ticket: a rest of some seconds
	tickets := NewClient(slow, queuesOf(2), slog.New(slog.DiscardHandler), func() { t.Error("a ring was lost") })
	tickets.rest = time.Minute
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tickets.Run(ctx) }()
	inLine := func(partition int) int64 { return client.LLen(t.Context(), queues.line(partition)).Val() }
	ring := func(partition int, account int64) {
		for Partition(account, 2) != partition {
			account += 1000
		}
		tickets.Ring(account, 1, uuid.New())
	}
	ring(0, 1)
	testenv.Eventually(t, "the first ticket to be written", func() bool { return inLine(0) == 1 })
	receive(t, calls)
	ring(1, 2)
	select {
	case <-calls:
		t.Error("a ticket is written while its writer is to rest")
	case <-time.After(300 * time.Millisecond):
	}
	ring(1, 3)
	cancel()
	if err := receive(t, ended); err != nil {
		t.Fatal(err)
	}
	if n := inLine(1); n != 1 {
		t.Errorf("%d tickets in line, want one for all who waited", n)
	}
}

// Rings that wait are written when their line is short again, whether somebody rings
// or not, and at the end.
func TestRingsThatWaitAreWritten(t *testing.T) {
	t.Parallel()
	const soon = announceEvery / 2 // something else would wake the writer
	client := connect(t, testenv.Redis(t))
	tickets := NewClient(client, queuesOf(1), slog.New(slog.DiscardHandler), func() { t.Error("a ring was lost") })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tickets.Run(ctx) }()
	var jobs []uuid.UUID
	ring := func() {
		jobs = append(jobs, uuid.New())
		tickets.Ring(int64(len(jobs)), 1, jobs[len(jobs)-1])
	}
	written := func() bool {
		for i, job := range jobs {
			place, err := tickets.Find(t.Context(), Ticket{AccountID: int64(i + 1), JobID: job})
			if err != nil || place.Position != InLine {
				return false
			}
		}
		return true
	}
	began := time.Now()
	for range longLine + 1 { // one at a time, or they share a ticket
		ring()
		testenv.Eventually(t, "the ticket to be written", written)
	}
	if took := time.Since(began); took > soon {
		t.Errorf("the last ring waited for %v, with nobody to ring after it", took)
	}
	ring()
	cancel()
	if err := receive(t, ended); err != nil || !written() {
		t.Errorf("ended with %v; a ring that waited has no ticket", err)
	}
}

// A ticket that nobody of ours wrote ends archived, where an operator sees it.
func TestBadTicketsAreArchived(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	serve(t, client, func(context.Context, []uuid.UUID) ([]uuid.UUID, error) { return nil, ErrUnknownJob }, asIs)
	forged := asynq.NewTask(taskType, []byte("not an id"))
	if _, err := asynq.NewClientFromRedisClient(client).Enqueue(forged, asynq.Queue(queues.Name(0)), asynq.TaskID("forged")); err != nil {
		t.Fatal(err)
	}
	awaitState(t, asynq.NewInspectorFromRedisClient(client), queues.Name(0), "forged", asynq.TaskStateArchived)
}

func awaitState(t testing.TB, inspector *asynq.Inspector, queue, name string, want asynq.TaskState) (info *asynq.TaskInfo) {
	t.Helper()
	testenv.Eventually(t, fmt.Sprintf("task %s to be %s", name, want), func() bool {
		var err error
		info, err = inspector.GetTaskInfo(queue, name)
		return err == nil && info.State == want
	})
	return info
}

// A task of an unknown job is given back, for long enough that others don't take its
// retries for progress, and archived after maxUnknown tries.
func TestUnknownJobIsArchivedAtLast(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	serve(t, client, func(context.Context, []uuid.UUID) ([]uuid.UUID, error) { return nil, ErrUnknownJob }, asIs)
	ticket := Ticket{AccountID: 1, JobID: uuid.New()}
	if err := ticketsOf(client).Enqueue(t.Context(), ticket); err != nil {
		t.Fatal(err)
	}
	inspector, name := asynq.NewInspectorFromRedisClient(client), queues.Of(1)
	for try := range maxUnknown {
		info := awaitState(t, inspector, name, ticket.id(), asynq.TaskStateRetry)
		wait := info.NextProcessAt.Sub(info.LastFailedAt)
		if wait < firstUnknown-time.Second || wait > longestUnknown+time.Second { // Asynq keeps whole seconds
			t.Errorf("try %d is followed by %v, want %v to %v", try, wait, firstUnknown, longestUnknown)
		}
		if err := inspector.RunTask(name, ticket.id()); err != nil {
			t.Fatal(err)
		}
	}
	awaitState(t, inspector, name, ticket.id(), asynq.TaskStateArchived)
}

func TestFind(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	tickets := ticketsOf(client)
	ticket := Ticket{AccountID: 1, JobID: uuid.New()}
	want := func(when string, want Position) {
		t.Helper()
		if list := tickets.Lines(t.Context()).Of(ticket.AccountID); list.Err != nil || (list.Oldest != "") != (want == InLine) {
			t.Errorf("%s: pending list %+v", when, list)
		}
		if got, err := tickets.Find(t.Context(), ticket); err != nil || got != (Place{Position: want}) {
			t.Errorf("%s: %v, %v; want %v", when, got, err, want)
		}
	}
	want("before anything was written", Gone)
	for range 2 {
		if err := tickets.Enqueue(t.Context(), ticket); err != nil {
			t.Fatalf("a ticket that is there is a success: %v", err)
		}
	}
	want("in line", InLine)
	hold, held := make(chan error), make(chan struct{}, 1)
	serve(t, client, func(context.Context, []uuid.UUID) ([]uuid.UUID, error) {
		held <- struct{}{}
		return nil, <-hold
	}, asIs)
	receive(t, held)
	want("in a worker's hands", InHand)
	hold <- errors.New("again")
	testenv.Eventually(t, "the ticket to wait for its next try", func() bool {
		place, err := tickets.Find(t.Context(), ticket)
		return err == nil && place.Position == PutOff && time.Until(place.Due).Abs() < LongestPutOff
	})
	receive(t, held)
	hold <- nil
	testenv.Eventually(t, "the ticket to be gone", func() bool {
		place, err := tickets.Find(t.Context(), ticket)
		return err == nil && place.Position == Gone
	})
}

// Rings that nobody writes are lost once there are too many; nobody waits.
func TestRingTooOften(t *testing.T) {
	t.Parallel()
	lost := 0
	tickets := NewClient(nil, queues, slog.New(slog.DiscardHandler), func() { lost++ })
	for range maxRings + 3 {
		tickets.Ring(1, 1, uuid.New())
	}
	if lost != 3 {
		t.Errorf("%d rings lost, want 3", lost)
	}
}

// A Redis that hangs holds nobody's end up, however many rings are left.
func TestStopWhileRedisHangs(t *testing.T) {
	t.Parallel()
	const soon = 10 * time.Second // ticket by ticket it takes a minute
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	lost := make(chan struct{}, manyPartitions)
	tickets := NewClient(client, queuesOf(manyPartitions), slog.New(slog.DiscardHandler), func() { lost <- struct{}{} })
	testenv.Freeze(t, server.PID())
	for n := range int64(100) {
		tickets.Ring(n, n, uuid.New())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tickets.Run(ctx) }()
	receive(t, lost)
	began := time.Now()
	cancel()
	if err := receive(t, ended); err != nil || time.Since(began) > soon {
		t.Errorf("ended after %v with %v, want within %v", time.Since(began), err, soon)
	}
}

// One that takes its time with each call has no more of it than any other.
func TestStopWhileRedisIsSlow(t *testing.T) {
	t.Parallel()
	const soon = 2 * drainTimeout // ticket by ticket it takes half a minute
	client := connect(t, testenv.Redis(t))
	first := make(chan struct{}, 1)
	client.AddHook(delay{after: 100 * time.Millisecond, first: first})
	tickets := NewClient(client, queuesOf(manyPartitions), slog.New(slog.DiscardHandler), func() {})
	for n := range int64(200) {
		tickets.Ring(n, n, uuid.New())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tickets.Run(ctx) }()
	receive(t, first)
	began := time.Now()
	cancel()
	if err := receive(t, ended); err != nil || time.Since(began) > soon {
		t.Errorf("ended after %v with %v, want within %v", time.Since(began), err, soon)
	}
}

// delay lets each call to Redis take longer, and says when the first has begun.
type delay struct {
	after time.Duration
	first chan<- struct{}
}

func (d delay) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d delay) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (d delay) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		select {
		case d.first <- struct{}{}:
		default:
		}
		<-time.After(d.after)
		return next(ctx, cmd)
	}
}

// Rings don't wait for a Redis that is down, and go on when it is back.
func TestRingWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	lost := make(chan struct{}, 1)
	tickets := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { lost <- struct{}{} })
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return tickets.Run(ctx) })
	defer func() {
		cancel()
		_ = group.Wait()
	}()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	tickets.Ring(1, 1, uuid.New())
	receive(t, lost)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ticket := Ticket{AccountID: 1, JobID: uuid.New()}
	tickets.Ring(1, 1, ticket.JobID)
	testenv.Eventually(t, "the ring to arrive", func() bool {
		place, err := tickets.Find(t.Context(), ticket)
		return err == nil && place.Position == InLine
	})
}
