package queue

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Redis has lost tasks and kept their names, or has values of another type at their keys. The
// tasks behind them are handled soon, and no name stays.
func TestServeRemovesOrphans(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	const orphans = 100
	good := map[uuid.UUID]bool{}
	for n := range int64(3 * orphans) {
		task := Task{AccountID: 1, JobID: uuid.New()}
		if err := clientOf(client).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		key := keysOf(queues.Of(1)) + "t:" + task.JobID.String()
		var err error
		switch {
		case n%orphans == orphans-1:
			good[task.JobID] = true
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
			t.Errorf("handled %s, which Redis has lost", got)
		}
	}
	prefix := keysOf(queues.Of(1))
	testenv.Eventually(t, "no name to stay", func() bool {
		return client.Exists(t.Context(), prefix+"pending", prefix+"active", prefix+"lease").Val() == 0
	})
}
