package queue

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/testenv"
)

// An operator sees the tasks of each partition, who serves it, and what keeps it from being served.
func TestStates(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	read := func() []State {
		t.Helper()
		states, err := States(t.Context(), client, queues)
		if err != nil || len(states) != partitions {
			t.Fatalf("%d states, %v", len(states), err)
		}
		return states
	}
	if got, want := read()[3], (State{Name: "test:tx:3"}); got != want {
		t.Errorf("of an empty Redis: %+v, want %+v", got, want)
	}
	for range 2 {
		if err := clientOf(client).Enqueue(t.Context(), Task{AccountID: accountOf(3), JobID: uuid.New()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := asynq.NewInspectorFromRedisClient(client).PauseQueue("test:tx:3"); err != nil {
		t.Fatal(err)
	}
	past := func(worker string, age time.Duration) redis.Z {
		return redis.Z{Member: worker, Score: float64(time.Now().Add(-age).Unix())}
	}
	for _, entry := range []struct {
		key string
		redis.Z
	}{
		{"test:workers", past("alive", 0)},
		{"test:workers", past("dead", time.Hour)},
		{"asynq:{test:tx:3}:lease", past("task", time.Minute)},
		{"asynq:{test:tx:3}:retry", past("other", 0)},
	} {
		if err := client.ZAdd(t.Context(), entry.key, entry.Z).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.LPush(t.Context(), queues.notified(3), "x").Err(); err != nil {
		t.Fatal(err)
	}
	states := read()
	if got, want := states[3], (State{Name: "test:tx:3", Pending: 2, Retry: 1, Notified: 1, Lost: 1, Paused: true, Worker: "alive"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := fmt.Sprint(states[4]), fmt.Sprint(State{Name: "test:tx:4", Worker: "alive"}); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
