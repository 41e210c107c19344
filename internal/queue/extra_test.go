package queue

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestIsExtra(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"test:tx:15": false, "test:tx:16": true, "test:tx:1000": true, "test:tx:017": false, "test:tx:+17": false,
		"test:tx:-1": false, "test:tx:": false, "test2:tx:17": false, "other:tx:17": false, "tx:17": false,
	} {
		if got := queuesOf(16).isExtra(name); got != want {
			t.Errorf("%s is extra: %t, want %t", name, got, want)
		}
	}
}

// Extra queues are served while they hold tasks, and no longer after some looks without one.
func TestExtraQueues(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	handled := make(chan uuid.UUID, 1)
	server := NewServer(ServerConfig{
		Redis: client, Queues: queuesOf(1), Log: slog.New(slog.DiscardHandler), IsFailure: func(error) bool { return true },
		Handler: func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
			handled <- jobs[0].JobID
			return nil, nil, nil
		},
	})
	defer server.extra.stop()
	for range 2 {
		task := Task{AccountID: accountOf(partitions - 1), JobID: uuid.New()}
		if err := clientOf(client).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		server.extra.look(t.Context())
		if got := receive(t, handled); got != task.JobID || !errors.Is(server.ExtraQueues(), ErrExtraQueues) {
			t.Errorf("handled %s, want %s; reports %v", got, task.JobID, server.ExtraQueues())
		}
		testenv.Eventually(t, "the queue to be served no longer", func() bool {
			server.extra.look(t.Context())
			return server.ExtraQueues() == nil
		})
	}
}
