package queue

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestIsStray(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"test:tx:15": false, "test:tx:16": true, "test:tx:1000": true, "test:tx:017": false, "test:tx:+17": false,
		"test:tx:-1": false, "test:tx:": false, "test2:tx:17": false, "other:tx:17": false, "tx:17": false,
	} {
		if got := queuesOf(16).isStray(name); got != want {
			t.Errorf("%s is stray: %t, want %t", name, got, want)
		}
	}
}

// Stray queues are served while they hold tasks, and left once they have been empty for
// some looks.
func TestStrays(t *testing.T) {
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
	defer server.strays.stop()
	for range 2 {
		ticket := Ticket{AccountID: accountOf(partitions - 1), JobID: uuid.New()}
		if err := ticketsOf(client).Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		server.strays.look(t.Context())
		if got := receive(t, handled); got != ticket.JobID || !errors.Is(server.Strays(), ErrStrays) {
			t.Errorf("handled %s, want %s; reports %v", got, ticket.JobID, server.Strays())
		}
		testenv.Eventually(t, "the queue to be left", func() bool {
			server.strays.look(t.Context())
			return server.Strays() == nil
		})
	}
}
