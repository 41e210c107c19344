package queue

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Asynq's inspector lists only this installation's queues, although one prefix begins with
// another.
func TestInspectorListsItsOwn(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	for _, prefix := range []string{"bank", "bank2", "other"} {
		of := Queues{Prefix: prefix, Partitions: 1}
		task := Task{AccountID: 1, JobID: uuid.New()}
		if err := NewClient(client, of, slog.New(slog.DiscardHandler), func() {}).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		got, err := asynq.NewInspectorFromRedisClient(of.Only(client)).Queues()
		if err != nil || !slices.Equal(got, []string{of.Name(0)}) {
			t.Errorf("%s lists %v, %v; want only its own", prefix, got, err)
		}
	}
}
