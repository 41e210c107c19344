package queue

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/testenv"
)

// When dequeues wait for an hour, a task is handled only after a wake-up, and an idle
// partition asks Redis nothing. This fails when Asynq changes its keys or how it dequeues.
func TestWakeUpFitsAsynq(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	dequeues := new(countDequeues)
	client.AddHook(dequeues)
	handled := make(chan uuid.UUID, 1)
	handler := func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
	}
	serve(t, client, handler, func(s *Server) { s.waiting.wait = time.Hour })
	const tasks = 20
	for n := range int64(tasks) {
		task := Task{AccountID: n, JobID: uuid.New()}
		if err := clientOf(client).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, handled); got != task.JobID {
			t.Fatalf("handled %s, want %s", got, task.JobID)
		}
	}
	// Each partition dequeues at the start and after the subscription, then only for a task:
	// once for the task and twice to find that no other is pending.
	if most := int64(4*partitions + 4*tasks); dequeues.n.Load() > most || dequeues.n.Load() < tasks {
		t.Errorf("%d dequeues for %d tasks, want at most %d", dequeues.n.Load(), tasks, most)
	}
}

// A Redis that forbids CONFIG SET is polled.
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
		task := Task{AccountID: n, JobID: uuid.New()}
		if err := clientOf(client).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		receive(t, handled)
	}
}

// After Redis crashed and came back empty, tasks are handled and wake-ups come.
func TestServeThroughRestart(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	handled := make(chan uuid.UUID, 1)
	var waiting *waitingClient
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
	}, func(s *Server) { waiting = s.waiting })
	for range 2 {
		task := Task{AccountID: 1, JobID: uuid.New()}
		testenv.Eventually(t, "the task to be written", func() bool { return clientOf(client).Enqueue(t.Context(), task) == nil })
		if got := receive(t, handled); got != task.JobID {
			t.Errorf("handled %s, want %s", got, task.JobID)
		}
		testenv.Eventually(t, "Redis to send events", func() bool {
			flags, err := client.ConfigGet(t.Context(), eventFlags).Result()
			return err == nil && mergedFlags(flags[eventFlags]) == flags[eventFlags] && waiting.events.Load()
		})
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMergedFlags(t *testing.T) {
	t.Parallel()
	for flags, want := range map[string]string{
		"": "Kl", "Kl": "Kl", "AK": "AK", "E": "EKl", "Ex": "ExKl", "K": "Kl", "AKE": "AKE", "lE": "lEK",
	} {
		if got := mergedFlags(flags); got != want {
			t.Errorf("flags %q become %q, want %q", flags, got, want)
		}
	}
}
