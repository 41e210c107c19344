package queue

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Every partition is listed before it has a task, also after an operator deleted one and after
// FLUSHALL, and Asynq's inspector reads each.
func TestPartitionsAreListed(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	serve(t, client, func(context.Context, []Notification) (_, _ []Notification, _ error) { return nil, nil, nil }, asIs)
	inspector := asynq.NewInspectorFromRedisClient(queues.Only(client))
	listed := func() bool {
		names, err := inspector.Queues()
		return err == nil && len(names) == partitions
	}
	testenv.Eventually(t, "the partitions to be listed", listed)
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err != nil || info.Size != 0 || info.Paused {
			t.Errorf("partition %d: %+v, %v", partition, info, err)
		}
	}
	if err := inspector.DeleteQueue(queues.Name(3), false); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the deleted queue to be listed again", listed)
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the partitions to be listed after FLUSHALL", listed)
}

// The queues of another installation are not listed: it may have fewer partitions.
func TestOthersPartitionsAreNotListed(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	first, second := queuesOf(1), queuesOf(2)
	for _, of := range []*Queues{&first, &second} {
		of.Owner = NewOwner(client, of.Prefix, uuid.New(), slog.New(slog.DiscardHandler))
		of.Owner.Check(t.Context())
		(&watch{client: client, queues: *of, log: slog.New(slog.DiscardHandler)}).look(t.Context())
	}
	if names, err := client.SMembers(t.Context(), allQueues).Result(); err != nil || !slices.Equal(names, []string{first.Name(0)}) {
		t.Errorf("listed %v, %v", names, err)
	}
}

// A pause is reported, counted and logged, once when it begins and once when it ends. While Redis is
// away the count is not known.
func TestPausesAreReported(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	const unknown = -1
	count := unknown
	var log bytes.Buffer
	w := &watch{client: client, queues: queues, log: slog.New(slog.NewTextHandler(&log, nil)), count: func(paused int) { count = paused }}
	want := func(paused string, lines, counted int) {
		t.Helper()
		count = unknown
		for range 2 {
			w.look(t.Context())
		}
		err := w.err()
		if (paused == "") != (err == nil) || err != nil && (!errors.Is(err, ErrPaused) || !strings.Contains(err.Error(), paused)) {
			t.Errorf("reports %v, want %q", err, paused)
		}
		if count != counted {
			t.Errorf("counted %d, want %d", count, counted)
		}
		if got := strings.Count(log.String(), "\n"); got != lines || !strings.Contains(log.String(), paused) {
			t.Errorf("%d lines, want %d:\n%s", got, lines, log.String())
		}
	}
	want("", 0, 0)
	inspector := asynq.NewInspectorFromRedisClient(client)
	for partition, lines := range []int{1, 2} {
		if err := inspector.PauseQueue(queues.Name(partition)); err != nil {
			t.Fatal(err)
		}
		want(queues.Name(partition), lines, partition+1)
	}
	for partition, lines := range []int{3, 4} {
		if err := inspector.UnpauseQueue(queues.Name(partition)); err != nil {
			t.Fatal(err)
		}
		if partition == 0 {
			want(queues.Name(1), lines, 1)
		} else {
			want("", lines, 0)
		}
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	want("", 4, unknown)
}
