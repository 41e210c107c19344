package queue

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Notifications of an account that are collected together are merged into one, for the job
// with the highest position and the number of all jobs, and grouped by partition.
func TestNotificationsOfAnAccountAreMerged(t *testing.T) {
	t.Parallel()
	const accounts = 100
	tasks := NewClient(nil, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") })
	last := map[int64]uuid.UUID{}
	for _, position := range []int64{2, 3, 1} {
		for n := range int64(accounts) {
			id := uuid.New()
			tasks.Notify(n+1, position, id, 2, nil)
			if position == 3 {
				last[n+1] = id
			}
		}
	}
	seen := 0
	for partition, notifications := range newWriter(tasks).collect(<-tasks.notifications) {
		for _, got := range notifications {
			want := Notification{JobID: last[got.AccountID], AccountID: got.AccountID, Position: 3, Jobs: 6}
			if got != want || partition != Partition(got.AccountID, partitions) {
				t.Errorf("in partition %d: %+v, want %+v in %d", partition, got, want, Partition(got.AccountID, partitions))
			}
			seen++
		}
	}
	if seen != accounts {
		t.Errorf("%d notifications, want one for each of %d accounts", seen, accounts)
	}
}

// While no worker takes a partition's task, its notifications in Redis stay within their
// bound, and one task is enough.
func TestNotificationsAreBounded(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	var dropped atomic.Int64
	tasks := NewClient(client, queuesOf(1), slog.New(slog.DiscardHandler), func() { dropped.Add(1) })
	w := newWriter(tasks)
	const each = 1000
	for n := range int64(maxNotified/each + 3) {
		var some []Notification
		for i := range int64(each) {
			some = append(some, Notification{JobID: uuid.New(), AccountID: n*each + i + 1, Position: 1, Jobs: 1})
		}
		if n == 0 {
			some = some[:maxTaskJobs]
		}
		if !w.write(t.Context(), map[int][]Notification{0: some}) {
			t.Fatal("Redis did not take the notifications")
		}
	}
	notified, pending := client.LLen(t.Context(), queuesOf(1).notified(0)).Val(), client.LLen(t.Context(), queuesOf(1).pending(0)).Val()
	if notified != maxNotified || pending != 1 || dropped.Load() != 2*each {
		t.Errorf("%d notifications, %d tasks, %d dropped; want %d, 1, %d", notified, pending, dropped.Load(), maxNotified, 2*each)
	}
}

// A Redis that has lost the script, as after a restart, is sent it again, and no notification
// is dropped.
func TestNotifyWithoutTheScript(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") }))
	for round := range int64(2) {
		if err := client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		all := map[int][]Notification{}
		for partition := range partitions {
			all[partition] = []Notification{{JobID: uuid.New(), AccountID: accountOf(partition), Position: round + 1, Jobs: 1}}
		}
		if !w.write(t.Context(), all) {
			t.Fatal("Redis did not take the notifications")
		}
	}
	for partition := range partitions { // the first has a task, the second waits for it
		tasks, notified := client.LLen(t.Context(), queues.pending(partition)).Val(), client.LLen(t.Context(), queues.notified(partition)).Val()
		if tasks != 1 || notified != 1 {
			t.Errorf("partition %d has %d tasks and %d notifications, want one each", partition, tasks, notified)
		}
	}
}

// A key of a wrong type is replaced by the partition's notifications.
func TestNotificationsOfAWrongType(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	w := newWriter(NewClient(client, queuesOf(1), slog.New(slog.DiscardHandler), func() { t.Error("a notification was dropped") }))
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

// Without a writer Notify drops the notifications beyond its bound, and does not wait.
func TestNotifyDropsBeyondItsBound(t *testing.T) {
	t.Parallel()
	dropped := 0
	tasks := NewClient(nil, queues, slog.New(slog.DiscardHandler), func() { dropped++ })
	for range maxNotifications + 3 {
		tasks.Notify(1, 1, uuid.New(), 1, nil)
	}
	if dropped != 3 {
		t.Errorf("%d notifications dropped, want 3", dropped)
	}
}

// Notify doesn't wait for a Redis that is down; Run writes again when Redis is back.
func TestNotifyWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	dropped := make(chan struct{}, 1)
	tasks := NewClient(client, queues, slog.New(slog.DiscardHandler), func() { dropped <- struct{}{} })
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return tasks.Run(ctx) })
	defer func() {
		cancel()
		_ = group.Wait()
	}()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	tasks.Notify(1, 1, uuid.New(), 1, nil)
	receive(t, dropped)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	task := Task{AccountID: 1, JobID: uuid.New()}
	tasks.Notify(1, 1, task.JobID, 1, nil)
	testenv.Eventually(t, "the task to be written", func() bool {
		info, err := tasks.Find(t.Context(), task)
		return err == nil && info.State == TaskPending
	})
}

// Run ends soon although Redis hangs and many notifications are left.
func TestStopWhileRedisHangs(t *testing.T) {
	t.Parallel()
	const soon = 10 * time.Second // one task after another it would take a minute
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	dropped := make(chan struct{}, manyPartitions)
	tasks := NewClient(client, queuesOf(manyPartitions), slog.New(slog.DiscardHandler), func() { dropped <- struct{}{} })
	testenv.Freeze(t, server.PID())
	for n := range int64(100) {
		tasks.Notify(n, n, uuid.New(), 1, nil)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tasks.Run(ctx) }()
	receive(t, dropped)
	began := time.Now()
	cancel()
	if err := receive(t, ended); err != nil || time.Since(began) > soon {
		t.Errorf("ended after %v with %v, want within %v", time.Since(began), err, soon)
	}
}

// Run ends soon although Redis is slow with each call and many notifications are left.
func TestStopWhileRedisIsSlow(t *testing.T) {
	t.Parallel()
	const soon = 2 * drainTimeout // one task after another it would take half a minute
	client := connect(t, testenv.Redis(t))
	first := make(chan struct{}, 1)
	client.AddHook(delay{after: 100 * time.Millisecond, first: first})
	tasks := NewClient(client, queuesOf(manyPartitions), slog.New(slog.DiscardHandler), func() {})
	for n := range int64(200) {
		tasks.Notify(n, n, uuid.New(), 1, nil)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tasks.Run(ctx) }()
	receive(t, first)
	began := time.Now()
	cancel()
	if err := receive(t, ended); err != nil || time.Since(began) > soon {
		t.Errorf("ended after %v with %v, want within %v", time.Since(began), err, soon)
	}
}

// delay makes each call to Redis take longer, and signals when the first has begun.
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
