package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Notifications that arrive while a task is pending, or its worker awake, are handled with the
// task, in batches, and need no other one. Later notifications have another task.
func TestTaskTakesNotifications(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	tasks := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") })
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
	send(maxTaken)
	batches, hold := make(chan []Notification), make(chan struct{})
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		batches <- jobs
		<-hold
		return nil, nil, nil
	}, asIs)
	got = append(got, receive(t, batches)...)
	if len(got) != maxTaken {
		t.Errorf("the first batch has %d jobs, want the task's and those that arrived while it was pending, up to %d", len(got), maxTaken)
	}
	send(2)
	hold <- struct{}{}
	got = append(got, receive(t, batches)...)
	if n := client.Exists(t.Context(), queues.pending(partition)).Val(); n != 0 || !slices.Equal(got, sent) {
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

// A task does not linger where notifications are left.
func TestTaskTakesABacklog(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") }))
	const partition, batches = 2, 3
	var some []Notification
	for n := range int64(batches * maxTaken) {
		some = append(some, Notification{JobID: uuid.New(), AccountID: 1, Position: n + 1, Jobs: 1})
	}
	w.write(t.Context(), map[int][]Notification{partition: some[:1]})
	w.write(t.Context(), map[int][]Notification{partition: some[1:]})
	handled := make(chan int)
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- len(jobs)
		return nil, nil, nil
	}, func(s *Server) { s.linger, s.longestTask = time.Hour, time.Hour })
	for n := range batches {
		if got := receive(t, handled); got != maxTaken {
			t.Errorf("batch %d has %d jobs, want %d", n, got, maxTaken)
		}
	}
}

// A task lingers: it handles notifications that arrive soon after its batches, and ends at
// once where another task is pending.
func TestTaskLingers(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	tasks := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") })
	w := newWriter(tasks)
	const account, partition = 1, 2 // TestPartitionIsStable
	handled := make(chan string)    // the names of the tasks
	serve(t, client, func(ctx context.Context, _ []Notification) (_, _ []Notification, _ error) {
		id, _ := asynq.GetTaskID(ctx)
		handled <- id
		return nil, nil, nil
	}, func(s *Server) { s.linger, s.longestTask = time.Hour, time.Hour })
	send := func() {
		w.write(t.Context(), map[int][]Notification{partition: {{JobID: uuid.New(), AccountID: account, Position: 1, Jobs: 1}}})
	}
	// A new subscription to Redis's events wakes the worker, too: sometimes another task is needed.
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
		t.Errorf("the lingering task handled %d of %d notifications, want %d at least", lingered, rounds, atLeast)
	}
	other := Task{AccountID: account, JobID: uuid.New()}
	if err := tasks.Enqueue(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if by := receive(t, handled); by != other.id() {
		t.Errorf("task %s was handled, want %s, for which the first ends", by, other.id())
	}
}

// A lingering task handles notifications whose events were lost: another program has changed what Redis
// sends.
func TestTaskLingers_LostEvent(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") }))
	handled := make(chan uuid.UUID)
	var server *Server
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		for _, job := range jobs {
			handled <- job.JobID
		}
		return nil, nil, nil
	}, func(s *Server) { server, s.linger, s.longestTask = s, time.Hour, time.Hour })
	testenv.Eventually(t, "the worker to have events: without them its tasks do not linger", server.waiting.events.Load)
	for range 3 { // a late event of the first may wake the task for the second
		id := uuid.New()
		w.write(t.Context(), map[int][]Notification{2: {{JobID: id, AccountID: 1, Position: 1, Jobs: 1}}})
		if got := receive(t, handled); got != id {
			t.Errorf("handled %s, want %s", got, id)
		}
		if err := client.ConfigSet(t.Context(), eventFlags, "").Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// A worker counts as awake from its first take until it finds no notification and, after its
// death, for awakeFor at most.
func TestAwake(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	server := NewServer(ServerConfig{Redis: client, Queues: queues, Log: slog.New(slog.DiscardHandler)})
	server.take(t.Context(), queues.Name(0), 1, stayAwake)
	if left := client.PTTL(t.Context(), awakeOf(queues.Name(0))).Val(); left <= 0 || left > awakeFor {
		t.Errorf("it counts as awake for %v, want %v at most", left, awakeFor)
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
	server.take(t.Context(), queues.Name(0), 1, stayAwake)
	client.RPush(t.Context(), queues.notified(0), "malformed", "malformed, too")
	if taken, _ := server.take(t.Context(), queues.Name(0), 1, sleepIfNone); len(taken) > 0 || client.Exists(t.Context(), awakeOf(queues.Name(0))).Val() > 0 {
		t.Errorf("it took %v of malformed ones, and counts as awake", taken)
	}
}

// A task that has handled its bound of batches enqueues another one for the remaining
// notifications.
func TestTaskEnqueuesTheRemaining(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") }))
	const partition, batches = 2, 3
	var some []Notification
	for n := range int64(batches * maxTaken) {
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
		if got, want := receive(t, handled), fmt.Sprint(some[n*maxTaken].JobID, " ", maxTaken); got != want {
			t.Errorf("batch %d was %s, want %s", n, got, want)
		}
	}
}

// Each remaining or troubled job has a task of its own, named after the job. Where the sweep
// has written a task of that name meanwhile, it is for the same job. The jobs that a task
// names are tried again with it.
func TestRemainingJobsHaveTasks(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	type call struct {
		name string
		jobs []Notification
	}
	const partition = 3
	var jobs []Notification
	for range 4 {
		jobs = append(jobs, Notification{JobID: uuid.New(), Jobs: 1})
	}
	name := func(n, attempt int) string { return Task{JobID: jobs[n].JobID, Attempt: attempt}.id() }
	remaining := map[string][]Notification{name(0, 0): jobs[1:3], name(1, 1): jobs[1:2]}
	troubled := map[string][]Notification{name(0, 0): jobs[3:]}
	tasks := asynq.NewClientFromRedisClient(client)
	handled := make(chan call, 6)
	serve(t, client, func(ctx context.Context, batch []Notification) (_, _ []Notification, err error) {
		id, _ := asynq.GetTaskID(ctx)
		handled <- call{id, batch}
		if id == name(0, 0) {
			if err := enqueue(ctx, tasks, queues.Name(partition), name(0, 1), jobs[:1]); err != nil { // as the sweep does
				t.Error(err)
			}
			err = errors.New("the account of the last one is locked")
		}
		return remaining[id], troubled[id], err
	}, func(*Server) {
		w := newWriter(clientOf(client))
		w.write(t.Context(), map[int][]Notification{partition: jobs[:3]})
		w.write(t.Context(), map[int][]Notification{partition: jobs[3:]})
	})
	for i, want := range []call{
		{name(0, 0), jobs}, {name(0, 1), jobs[:1]}, {name(1, 1), jobs[1:2]}, {name(2, 1), jobs[2:3]}, {name(3, 1), jobs[3:]}, {name(1, 2), jobs[1:2]},
	} {
		if got := receive(t, handled); got.name != want.name || !slices.Equal(got.jobs, want.jobs) {
			t.Errorf("call %d was for task %s and %v, want %s and %v", i, got.name, got.jobs, want.name, want.jobs)
		}
	}
}

// A malformed task is archived, where an operator sees it.
func TestMalformedTasksAreArchived(t *testing.T) {
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

// A task of an unknown job is retried after delays so long that the sweeps of other
// installations don't take the retries for progress. It is archived after maxUnknownAttempts.
func TestUnknownJobIsArchivedAtLast(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		return nil, jobs, ErrUnknownJob
	}, asIs)
	task := Task{AccountID: 1, JobID: uuid.New()}
	if err := clientOf(client).Enqueue(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	inspector, name := asynq.NewInspectorFromRedisClient(client), queues.Of(1)
	for attempt := range maxUnknownAttempts {
		info := awaitState(t, inspector, name, task.id(), asynq.TaskStateRetry)
		wait := info.NextProcessAt.Sub(info.LastFailedAt)
		if wait < firstUnknownDelay-time.Second || wait > longestUnknownDelay+time.Second { // Asynq keeps whole seconds
			t.Errorf("attempt %d is followed by %v, want %v to %v", attempt, wait, firstUnknownDelay, longestUnknownDelay)
		}
		if err := inspector.RunTask(name, task.id()); err != nil {
			t.Fatal(err)
		}
	}
	awaitState(t, inspector, name, task.id(), asynq.TaskStateArchived)
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
