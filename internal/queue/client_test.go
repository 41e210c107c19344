package queue

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestFind(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	tasks := clientOf(client)
	task := Task{AccountID: 1, JobID: uuid.New()}
	want := func(when string, want TaskState) {
		t.Helper()
		if list := tasks.PendingLists(t.Context()).Of(task.AccountID); list.Err != nil || (list.Oldest != "") != (want == TaskPending) {
			t.Errorf("%s: pending list %+v", when, list)
		}
		if got, err := tasks.Find(t.Context(), task); err != nil || got != (TaskInfo{State: want}) {
			t.Errorf("%s: %v, %v; want %v", when, got, err, want)
		}
	}
	want("before anything was written", TaskMissing)
	for range 2 {
		if err := tasks.Enqueue(t.Context(), task); err != nil {
			t.Fatalf("enqueue a task that exists: %v", err)
		}
	}
	want("after Enqueue", TaskPending)
	hold, held := make(chan error), make(chan struct{}, 1)
	serve(t, client, func(_ context.Context, jobs []Notification) (_, troubled []Notification, err error) {
		held <- struct{}{}
		if err = <-hold; err != nil {
			troubled = jobs
		}
		return nil, troubled, err
	}, asIs)
	receive(t, held)
	want("while a worker handles it", TaskActive)
	hold <- errors.New("again")
	testenv.Eventually(t, "the task to wait for its next attempt", func() bool {
		info, err := tasks.Find(t.Context(), task)
		return err == nil && info.State == TaskRetry && time.Until(info.RetryAt).Abs() < LongestRetry
	})
	receive(t, held)
	hold <- nil
	testenv.Eventually(t, "the task to be finished", func() bool {
		info, err := tasks.Find(t.Context(), task)
		return err == nil && info.State == TaskMissing
	})
}
