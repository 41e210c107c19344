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

	"github.com/passbook/passbook/internal/test/testenv"
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
	handler := func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
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
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
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

// While no worker takes a partition's task, its notifications grow to their bound and no
// further, and one task is enough.
func TestNotificationsAreBounded(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	var left atomic.Int64
	tasks := NewClient(client, queuesOf(1), slog.New(slog.DiscardHandler), func() { left.Add(1) })
	w := newWriter(tasks)
	const each = 1000
	for n := range int64(maxNotified/each + 3) {
		var some []Notification
		for i := range int64(each) {
			some = append(some, Notification{JobID: uuid.New(), AccountID: n*each + i + 1, Position: 1, Jobs: 1})
		}
		if n == 0 {
			some = some[:maxShared]
		}
		if !w.write(t.Context(), map[int][]Notification{0: some}) {
			t.Fatal("Redis did not take the notifications")
		}
	}
	told, tasksThere := client.LLen(t.Context(), queuesOf(1).notified(0)).Val(), client.LLen(t.Context(), queuesOf(1).line(0)).Val()
	if told != maxNotified || tasksThere != 1 || left.Load() != 2*each {
		t.Errorf("%d notifications, %d tasks, %d left to the sweep; want %d, 1, %d", told, tasksThere, left.Load(), maxNotified, 2*each)
	}
}

// A key of a wrong type in the place of a partition's notifications is replaced.
func TestNotificationsOfAWrongType(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queuesOf(1), slog.New(slog.DiscardHandler), func() { t.Error("a notification was lost") }))
	if err := client.Set(t.Context(), queuesOf(1).notified(0), "of a wrong type", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for n := range int64(2) {
		w.write(t.Context(), map[int][]Notification{0: {{JobID: uuid.New(), AccountID: n + 1, Position: 1, Jobs: 1}}})
	}
	if n, err := client.LLen(t.Context(), queuesOf(1).notified(0)).Result(); n != 1 || err != nil {
		t.Errorf("%d notifications, %v; want the second's", n, err)
	}
}

// While a task is pending, or its worker awake, what comes is handled with it, in batches, and
// needs no other task; what comes later has one. No job is missed.
func TestTaskTakesWhatCameMeanwhile(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	tasks := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was lost") })
	w := newWriter(tasks)
	const account, partition = 1, 2 // TestPartitionIsStable
	var sent, got []Notification
	send := func(n int) {
		var some []Notification
		for range n {
			one := Notification{JobID: uuid.New(), AccountID: account, Position: int64(len(sent) + 1), Jobs: 1}
			sent, some = append(sent, one), append(some, one)
		}
		w.write(t.Context(), map[int][]Notification{partition: some})
	}
	send(1)
	send(maxBatch)
	batches, hold := make(chan []Notification), make(chan struct{})
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		batches <- jobs
		<-hold
		return nil, nil, nil
	}, asIs)
	got = append(got, receive(t, batches)...)
	if len(got) != maxBatch {
		t.Errorf("the first batch has %d jobs, want the task's and those that came while it was pending, up to %d", len(got), maxBatch)
	}
	send(2)
	hold <- struct{}{}
	got = append(got, receive(t, batches)...)
	if n := client.Exists(t.Context(), queues.line(partition)).Val(); n != 0 || !slices.Equal(got, sent) {
		t.Errorf("handled %v, and a task is pending: %d; want %v, and none", got, n, sent)
	}
	hold <- struct{}{}
	testenv.Eventually(t, "the worker to sleep", func() bool { return client.Exists(t.Context(), awakeOf(queues.Name(partition))).Val() == 0 })
	send(1)
	got = append(got, receive(t, batches)...)
	hold <- struct{}{}
	if !slices.Equal(got, sent) {
		t.Errorf("handled %v, want each of %v once", got, sent)
	}
}

// A task lingers: it handles what comes soon after its batches, and ends at once where another
// task is pending.
func TestTaskLingers(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	tasks := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was lost") })
	w := newWriter(tasks)
	const account, partition = 1, 2 // TestPartitionIsStable
	handled := make(chan string)    // the names of the tasks
	serve(t, client, func(ctx context.Context, _ []Notification) (_, _ []Notification, _ error) {
		id, _ := asynq.GetTaskID(ctx)
		handled <- id
		return nil, nil, nil
	}, func(s *Server) { s.linger, s.longest = time.Hour, time.Hour })
	send := func() (jobID string) {
		one := Notification{JobID: uuid.New(), AccountID: account, Position: 1, Jobs: 1}
		w.write(t.Context(), map[int][]Notification{partition: {one}})
		return one.JobID.String()
	}
	// A new subscription to Redis's events wakes the worker, too: now and then another task is needed.
	const rounds, atLeast = maxBatches, maxBatches * 9 / 10
	lingered := 0
	for task, round := "", 0; round < rounds; round++ {
		send()
		by := receive(t, handled)
		if by == task {
			lingered++
		}
		task = by
	}
	if lingered < atLeast {
		t.Errorf("%d of %d notifications were handled by the task that lingered, want %d at least", lingered, rounds, atLeast)
	}
	other := Ticket{AccountID: account, JobID: uuid.New()}
	if err := tasks.Enqueue(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if by := receive(t, handled); by != other.id() {
		t.Errorf("task %s was handled, want %s, for which the first ends", by, other.id())
	}
}

// A worker is believed to take notifications from when it begins to until it finds none, and,
// where it dies, for a short time only.
func TestAwake(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	server := NewServer(ServerConfig{Redis: client, Queues: queues, Log: slog.New(slog.DiscardHandler)})
	server.take(t.Context(), queues.Name(0), 1, stayAwake)
	if left := client.PTTL(t.Context(), awakeOf(queues.Name(0))).Val(); left <= 0 || left > awakeFor {
		t.Errorf("it is believed to be awake for %v, want %v at most", left, awakeFor)
	}
	one := Notification{JobID: uuid.New(), AccountID: 1, Position: 1, Jobs: 1}
	for _, step := range []struct {
		then string
		more bool // there is one to take
		want int64
	}{{sleepIfNone, false, 0}, {stayAwake, false, 1}, {sleepIfNone, true, 1}, {sleep, true, 0}, {sleepIfNone, true, 1}, {sleepIfNone, false, 0}} {
		if step.more {
			client.RPush(t.Context(), queues.notified(0), one.String())
		}
		taken, _ := server.take(t.Context(), queues.Name(0), 1, step.then)
		if awake := client.Exists(t.Context(), awakeOf(queues.Name(0))).Val(); awake != step.want || (len(taken) == 1) != step.more {
			t.Errorf("%+v: awake %d, took %v", step, awake, taken)
		}
	}
}

// A task that has handled as many batches as it may leaves another one for what is left.
func TestTaskPassesTheRestOn(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was lost") }))
	const partition, batches = 2, 3
	var some []Notification
	for n := range int64(batches * maxBatch) {
		some = append(some, Notification{JobID: uuid.New(), AccountID: 1, Position: n + 1, Jobs: 1})
	}
	w.write(t.Context(), map[int][]Notification{partition: some[:1]})
	w.write(t.Context(), map[int][]Notification{partition: some[1:]})
	handled := make(chan string, batches)
	serve(t, client, func(ctx context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		id, _ := asynq.GetTaskID(ctx)
		handled <- fmt.Sprint(id, " ", len(jobs))
		return nil, nil, nil
	}, func(s *Server) { s.batches = 1 })
	for n := range batches {
		if got, want := receive(t, handled), fmt.Sprint(some[n*maxBatch].JobID, " ", maxBatch); got != want {
			t.Errorf("batch %d was %s, want %s", n, got, want)
		}
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
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
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
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
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

// What needs another turn, or met an error, has it by itself and under a name of its own:
// where the sweep has written a task of the same name meanwhile, it is one for the same job.
// The jobs that a task names are tried again with it.
func TestMore(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	type turn struct {
		name string
		jobs []Notification
	}
	const partition = 3
	var jobs []Notification
	for range 4 {
		jobs = append(jobs, Notification{JobID: uuid.New(), Jobs: 1})
	}
	name := func(n, again int) string { return Ticket{JobID: jobs[n].JobID, Again: again}.id() }
	remaining := map[string][]Notification{name(0, 0): jobs[1:3], name(1, 1): jobs[1:2]}
	troubled := map[string][]Notification{name(0, 0): jobs[3:]}
	tasks := asynq.NewClientFromRedisClient(client)
	handled := make(chan turn, 6)
	serve(t, client, func(ctx context.Context, batch []Notification) (_, _ []Notification, err error) {
		id, _ := asynq.GetTaskID(ctx)
		handled <- turn{id, batch}
		if id == name(0, 0) {
			if err := enqueue(ctx, tasks, queues.Name(partition), name(0, 1), jobs[:1]); err != nil { // the sweep does
				t.Error(err)
			}
			err = errors.New("the account of the last one is locked")
		}
		return remaining[id], troubled[id], err
	}, func(*Server) {
		w := newWriter(ticketsOf(client))
		w.write(t.Context(), map[int][]Notification{partition: jobs[:3]})
		w.write(t.Context(), map[int][]Notification{partition: jobs[3:]})
	})
	for i, want := range []turn{
		{name(0, 0), jobs}, {name(0, 1), jobs[:1]}, {name(1, 1), jobs[1:2]}, {name(2, 1), jobs[2:3]}, {name(3, 1), jobs[3:]}, {name(1, 2), jobs[1:2]},
	} {
		if got := receive(t, handled); got.name != want.name || !slices.Equal(got.jobs, want.jobs) {
			t.Errorf("turn %d was that of %s for %v, want %s for %v", i, got.name, got.jobs, want.name, want.jobs)
		}
	}
}

// A ticket that nobody of ours wrote ends archived, where an operator sees it.
func TestBadTicketsAreArchived(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		return nil, jobs, ErrUnknownJob
	}, asIs)
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
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		return nil, jobs, ErrUnknownJob
	}, asIs)
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
	serve(t, client, func(_ context.Context, jobs []Notification) (_, troubled []Notification, err error) {
		held <- struct{}{}
		if err = <-hold; err != nil {
			troubled = jobs
		}
		return nil, troubled, err
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
	for range maxNotifications + 3 {
		tickets.Notify(1, 1, uuid.New(), 1)
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
		tickets.Notify(n, n, uuid.New(), 1)
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
		tickets.Notify(n, n, uuid.New(), 1)
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
	tickets.Notify(1, 1, uuid.New(), 1)
	receive(t, lost)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ticket := Ticket{AccountID: 1, JobID: uuid.New()}
	tickets.Notify(1, 1, ticket.JobID, 1)
	testenv.Eventually(t, "the ring to arrive", func() bool {
		place, err := tickets.Find(t.Context(), ticket)
		return err == nil && place.Position == InLine
	})
}
