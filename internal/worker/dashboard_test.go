package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/queue/dashboard"
	"github.com/passbook/passbook/internal/test/testenv"
)

// taskAction is what the dashboard offers for tasks. ID in the path stands for a task of the queue, and
// body is sent with the ids of all.
type taskAction struct {
	method, path string
	batch        bool
}

// In which states tasks are when an operator acts on them.
var taskActions = map[string][]taskAction{
	"pending": {
		{http.MethodDelete, "pending_tasks/ID", false},
		{http.MethodDelete, "pending_tasks:delete_all", false},
		{http.MethodPost, "pending_tasks:batch_delete", true},
		{http.MethodPost, "pending_tasks/ID:archive", false},
		{http.MethodPost, "pending_tasks:archive_all", false},
		{http.MethodPost, "pending_tasks:batch_archive", true},
	},
	"retry": {
		{http.MethodDelete, "retry_tasks/ID", false},
		{http.MethodDelete, "retry_tasks:delete_all", false},
		{http.MethodPost, "retry_tasks:batch_delete", true},
		{http.MethodPost, "retry_tasks/ID:run", false},
		{http.MethodPost, "retry_tasks:run_all", false},
		{http.MethodPost, "retry_tasks:batch_run", true},
		{http.MethodPost, "retry_tasks/ID:archive", false},
		{http.MethodPost, "retry_tasks:archive_all", false},
		{http.MethodPost, "retry_tasks:batch_archive", true},
	},
	"archived": {
		{http.MethodDelete, "archived_tasks/ID", false},
		{http.MethodDelete, "archived_tasks:delete_all", false},
		{http.MethodPost, "archived_tasks:batch_delete", true},
		{http.MethodPost, "archived_tasks/ID:run", false},
		{http.MethodPost, "archived_tasks:run_all", false},
		{http.MethodPost, "archived_tasks:batch_run", true},
	},
}

// Whatever an operator does to tasks on the dashboard, every job finishes, once and in order. Each
// action has a partition of its own.
func TestDashboardActionsOnTasks(t *testing.T) {
	t.Parallel()
	for state, actions := range taskActions {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := newSystemOf(t, testenv.Pool(t), testenv.Redis(t), queue.Queues{Prefix: "test", Partitions: len(actions)})
			board := openDashboard(s)
			const each = 3
			accounts, jobs := s.accountInEach(), make([][]uuid.UUID, len(actions))
			for partition, account := range accounts {
				for range each {
					id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
					jobs[partition] = append(jobs[partition], id)
					s.enqueue(account, id)
				}
			}
			switch state {
			case "retry":
				s.failTasks(len(actions) * each)
			case "archived":
				for partition := range actions {
					board.act(http.MethodPost, partition, "pending_tasks:archive_all", nil)
				}
			}
			for partition, action := range actions {
				var ids []uuid.UUID
				if action.batch {
					ids = jobs[partition]
				}
				board.act(action.method, partition, strings.Replace(action.path, "ID", jobs[partition][1].String(), 1), ids)
			}
			s.work()
			s.drained()
			for partition, action := range actions {
				t.Run(action.method+" "+action.path, func(t *testing.T) {
					in := *s
					in.t = t
					in.inOrder(accounts[partition], jobs[partition])
				})
			}
		})
	}
}

// An active task goes on although it is canceled.
func TestDashboardCancelsNoActiveTask(t *testing.T) {
	t.Parallel()
	actions := []taskAction{
		{http.MethodPost, "active_tasks/ID:cancel", false},
		{http.MethodPost, "active_tasks:cancel_all", false},
		{http.MethodPost, "active_tasks:batch_cancel", true},
	}
	s := newSystemOf(t, testenv.Pool(t), testenv.Redis(t), queue.Queues{Prefix: "test", Partitions: len(actions)})
	board := openDashboard(s)
	accounts, jobs := s.accountInEach(), make([][]uuid.UUID, len(actions))
	holder, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it has ended by then
	if _, err := holder.Exec(t.Context(), `SELECT FROM accounts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	s.work()
	for partition, account := range accounts {
		for range 3 {
			jobs[partition] = append(jobs[partition], ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
		}
		s.enqueue(account, jobs[partition][0])
	}
	for partition, action := range actions {
		testenv.Eventually(t, "the task to be active", func() bool { return s.info(partition).Active > 0 })
		var ids []uuid.UUID
		if action.batch {
			ids = jobs[partition][:1]
		}
		board.act(action.method, partition, strings.Replace(action.path, "ID", jobs[partition][0].String(), 1), ids)
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.drained()
	for partition, account := range accounts {
		s.inOrder(account, jobs[partition])
	}
}

// The jobs of a paused partition wait, also for the sweep, and are applied in order once an operator
// resumes it. A queue with tasks is not deleted, and one without may be.
func TestDashboardActionsOnQueues(t *testing.T) {
	t.Parallel()
	s := newSystemOf(t, testenv.Pool(t), testenv.Redis(t), queue.Queues{Prefix: "test", Partitions: 2})
	board := openDashboard(s)
	accounts := s.accountInEach()
	s.work()
	testenv.Eventually(t, "the partitions to be listed", func() bool { return s.info(0) != nil && s.info(1) != nil })
	board.act(http.MethodPost, 0, ":pause", nil)
	testenv.Eventually(t, "the worker to report the pause", func() bool { return errors.Is(s.server.Paused(), queue.ErrPaused) })
	var jobs [2][]uuid.UUID
	for range 3 {
		for partition, account := range accounts {
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
			jobs[partition] = append(jobs[partition], id)
			s.enqueue(account, id)
		}
	}
	testenv.Eventually(t, "the other partition's jobs", func() bool { return s.count(job.Queued) == len(jobs[0]) })
	if status := board.do(http.MethodDelete, 0, "", nil); status != http.StatusBadRequest && status != http.StatusNotFound {
		t.Errorf("a queue with tasks is deleted: %d", status)
	}
	sweeper := s.sweeper()
	for range 20 { // long after any other stalled account is applied
		sweeper.Sweep(t.Context())
	}
	if n := s.count(job.Queued); n != len(jobs[0]) {
		t.Errorf("%d jobs are queued in a paused partition, want %d", n, len(jobs[0]))
	}
	board.act(http.MethodPost, 0, ":resume", nil)
	s.drained()
	testenv.Eventually(t, "the queue to be empty", func() bool { return board.do(http.MethodDelete, 0, "", nil) == http.StatusNoContent })
	for partition, account := range accounts {
		id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
		jobs[partition] = append(jobs[partition], id)
		s.enqueue(account, id)
	}
	s.drained()
	for partition, account := range accounts {
		s.inOrder(account, jobs[partition])
	}
	testenv.Eventually(t, "the queue to be listed again", func() bool { return s.info(0) != nil && !s.info(0).Paused })
}

// board is the dashboard's API, with the right to write.
type board struct {
	s   *system
	url string
}

func openDashboard(s *system) *board {
	s.t.Helper()
	handler, err := dashboard.New(dashboard.Config{
		Path: "/queues", Redis: s.redis, Own: s.queues.Only(s.redis), Write: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	s.t.Cleanup(server.Close)
	return &board{s: s, url: server.URL + "/queues/api/queues/"}
}

// act does what must succeed.
func (b *board) act(method string, partition int, action string, ids []uuid.UUID) {
	b.s.t.Helper()
	if status := b.do(method, partition, action, ids); status/100 != 2 {
		b.s.t.Errorf("%s %s: %d", method, action, status)
	}
}

func (b *board) do(method string, partition int, action string, ids []uuid.UUID) (status int) {
	b.s.t.Helper()
	body := ""
	if ids != nil {
		encoded, err := json.Marshal(map[string]any{"task_ids": ids})
		if err != nil {
			b.s.t.Fatal(err)
		}
		body = string(encoded)
	}
	if action != "" && !strings.HasPrefix(action, ":") {
		action = "/" + action
	}
	request, err := http.NewRequestWithContext(b.s.t.Context(), method, b.url+b.s.queues.Name(partition)+action, strings.NewReader(body))
	if err != nil {
		b.s.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		b.s.t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	answered, err := io.ReadAll(response.Body)
	if err != nil || strings.Contains(string(answered), `"error_ids":["`) || strings.Contains(string(answered), `"failed_ids":["`) {
		b.s.t.Errorf("%s %s: %s, %v", method, action, answered, err)
	}
	return response.StatusCode
}

// accountInEach opens accounts until each partition has one.
func (s *system) accountInEach() []ledger.Account {
	s.t.Helper()
	accounts := make([]ledger.Account, s.queues.Partitions)
	for missing := len(accounts); missing > 0; {
		account := ledgertest.Account(s.t, s.pool, s.user, 0)
		if partition := queue.Partition(account.ID, len(accounts)); accounts[partition].ID == 0 {
			accounts[partition] = account
			missing--
		}
	}
	return accounts
}

// failTasks handles all tasks with an error, so that they wait for their next attempt.
func (s *system) failTasks(n int) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	server := queue.NewServer(queue.ServerConfig{
		Redis: s.redis, Queues: s.queues, Log: slog.New(slog.DiscardHandler), IsFailure: func(error) bool { return true },
		Handler: func(context.Context, []queue.Notification) (_, _ []queue.Notification, _ error) {
			return nil, nil, queue.ErrUnknownJob // whose delays are long
		},
	})
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	testenv.Eventually(s.t, "the tasks to be retried", func() bool {
		retry := 0
		for partition := range s.queues.Partitions {
			if info := s.info(partition); info != nil {
				retry += info.Retry
			}
		}
		return retry == n
	})
	cancel()
	if err := group.Wait(); err != nil {
		s.t.Error(err)
	}
}

// info is what Asynq says of a partition's queue; nil where it is not listed.
func (s *system) info(partition int) *asynq.QueueInfo {
	s.t.Helper()
	info, err := asynq.NewInspectorFromRedisClient(s.redis).GetQueueInfo(s.queues.Name(partition))
	if err != nil {
		return nil
	}
	return info
}
