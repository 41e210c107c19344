package queue

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Two workers share the partitions: each task is handled by the worker to which its
// partition is assigned, and the other worker does not ask Redis for it.
func TestAssignment(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	dequeues := new(countDequeues)
	client.AddHook(dequeues)
	handled := make(chan int, 1)
	var servers []*Server
	for n := range 2 {
		serve(t, client, func(context.Context, []Notification) (_, _ []Notification, _ error) {
			handled <- n
			return nil, nil, nil
		}, func(s *Server) {
			s.waiting.wait, s.waiting.pollEvery, s.assignment.every = time.Hour, time.Hour, time.Hour
			servers = append(servers, s)
		})
		dequeues.settle(t, partitions) // the first subscribes, too
	}
	bothKnown := func() bool {
		others := len(*servers[0].assignment.elsewhere.Load()) + len(*servers[1].assignment.elsewhere.Load())
		return others == partitions
	}
	testenv.Eventually(t, "the workers to know each other", bothKnown)
	dequeues.settle(t, 2*partitions)
	before := dequeues.n.Load()
	took := map[int]int{}
	tasks := clientOf(client)
	for partition := range partitions {
		task := Task{AccountID: accountOf(partition), JobID: uuid.New()}
		if err := tasks.Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		n := receive(t, handled)
		if servers[n].assignment.isElsewhere(queues.pending(partition)) {
			t.Errorf("partition %d was served by the other worker", partition)
		}
		took[n]++
	}
	if took[0] == 0 || took[1] == 0 {
		t.Errorf("the workers handled %v tasks, want some each", took)
	}
	// The assigned worker dequeues the task and then once more.
	if asked := dequeues.n.Load() - before; asked > 2*partitions {
		t.Errorf("%d dequeues for %d tasks", asked, partitions)
	}
}

// Another worker handles the tasks of a worker that is assigned and takes none, dead or
// busy. A dead worker is forgotten.
func TestAssignment_Dead(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	handled := make(chan uuid.UUID, 1)
	var server *Server
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
	}, func(s *Server) {
		s.waiting.wait = time.Hour
		server = s
	})
	dead := newAssignment(client, queues, slog.New(slog.DiscardHandler))
	busy, died := context.WithCancel(t.Context()) // it announces itself and takes no task
	defer died()
	announced := make(chan struct{})
	go func() {
		defer close(announced)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for busy.Err() == nil {
			_, _ = dead.announce(busy)
			select {
			case <-tick.C:
			case <-busy.Done():
			}
		}
	}()
	testenv.Eventually(t, "some partitions to be assigned to the dead worker", func() bool { return len(*server.assignment.elsewhere.Load()) > 0 })
	for partition := range partitions {
		task := Task{AccountID: accountOf(partition), JobID: uuid.New()}
		if err := clientOf(client).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, handled); got != task.JobID {
			t.Errorf("handled %s, want %s", got, task.JobID)
		}
	}
	died()
	<-announced
	testenv.Eventually(t, "the dead worker to be forgotten", func() bool { return len(*server.assignment.elsewhere.Load()) == 0 })
}

// A task ends that lingers on a partition which moves to another worker. Otherwise that worker would get
// the events of the partition's notifications, and this one take them, when it has lingered.
func TestAssignment_Lingering(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	handled := make(chan int, 1)
	var servers []*Server
	start := func() {
		n := len(servers)
		serve(t, client, func(context.Context, []Notification) (_, _ []Notification, _ error) {
			handled <- n
			return nil, nil, nil
		}, func(s *Server) {
			s.waiting.wait, s.waiting.pollEvery, s.linger, s.longestTask = time.Hour, time.Hour, time.Hour, time.Hour
			servers = append(servers, s)
		})
	}
	w := newWriter(clientOf(client))
	send := func(partition int) {
		w.write(t.Context(), map[int][]Notification{partition: {{JobID: uuid.New(), AccountID: accountOf(partition), Position: 1, Jobs: 1}}})
	}
	isLingering := func(partition int) bool {
		return client.LLen(t.Context(), keysOf(queues.Name(partition))+"active").Val() > 0
	}
	start()
	testenv.Eventually(t, "the first worker to have events", servers[0].waiting.events.Load)
	for partition := range partitions {
		send(partition)
		receive(t, handled)
	}
	start()
	moved := func(partition int) bool { return servers[0].assignment.isElsewhere(queues.pending(partition)) }
	testenv.Eventually(t, "the tasks of the partitions that moved to end", func() bool {
		has := 0
		for partition := range partitions {
			if moved(partition) && isLingering(partition) {
				return false
			}
			if moved(partition) {
				has++
			}
		}
		return has > 0 && has == partitions-len(*servers[1].assignment.elsewhere.Load())
	})
	for partition := range partitions {
		send(partition)
		if n := receive(t, handled); (n == 1) != moved(partition) {
			t.Errorf("worker %d handled a notification of partition %d", n, partition)
		}
	}
}

// A worker that started while the subscription was lost is known after the next one.
func TestAssignment_MissedStart(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	dequeues := new(countDequeues)
	client.AddHook(dequeues)
	var server *Server
	serve(t, client, nil, func(s *Server) {
		s.waiting.wait, s.waiting.pollEvery, s.assignment.every = time.Hour, time.Hour, time.Hour
		server = s
	})
	dequeues.settle(t, partitions)
	if err := client.ZAdd(t.Context(), queues.workersKey(), redis.Z{Score: float64(time.Now().Unix()), Member: "missed"}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "some partitions to be assigned to the other worker", func() bool { return len(*server.assignment.elsewhere.Load()) > 0 })
}

// beside is a server that only wake-ups make dequeue, and another worker that announces
// itself and does nothing.
type beside struct {
	client   redis.UniversalClient
	dequeues *countDequeues
	handled  chan uuid.UUID
	server   *Server
	other    *assignment
}

// theirs is true for a partition that is assigned to the other worker.
func (b *beside) theirs(partition int) bool {
	return b.server.assignment.isElsewhere(queues.pending(partition))
}

func serveBeside(t *testing.T) *beside {
	t.Helper()
	b := &beside{client: connect(t, testenv.Redis(t)), dequeues: new(countDequeues), handled: make(chan uuid.UUID, 1)}
	b.client.AddHook(b.dequeues)
	serve(t, b.client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		b.handled <- jobs[0].JobID
		return nil, nil, nil
	}, func(s *Server) {
		s.waiting.wait, s.waiting.pollEvery, s.assignment.every = time.Hour, time.Hour, time.Hour
		b.server = s
	})
	b.other = newAssignment(b.client, queues, slog.New(slog.DiscardHandler))
	testenv.Eventually(t, "some partitions to be assigned to the other worker", func() bool {
		_, err := b.other.announce(t.Context())
		return err == nil && len(*b.server.assignment.elsewhere.Load()) > 0
	})
	b.dequeues.settle(t, partitions)
	return b
}

// A worker takes no task of another worker that takes its tasks. Where the oldest task does
// not move, or many are pending, it helps until none is left.
func TestHelpOthers(t *testing.T) {
	t.Parallel()
	b := serveBeside(t)
	theirs := 0
	for !b.theirs(theirs) {
		theirs++
	}
	write := func() uuid.UUID {
		task := Task{AccountID: accountOf(theirs), JobID: uuid.New()}
		if err := clientOf(b.client).Enqueue(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		return task.JobID
	}
	before := b.dequeues.n.Load()
	write()
	oldest := b.server.waiting.helpOthers(t.Context(), nil)
	if err := b.client.RPop(t.Context(), queues.pending(theirs)).Err(); err != nil { // the other worker takes it
		t.Fatal(err)
	}
	stuck, next := write(), write()
	oldest = b.server.waiting.helpOthers(t.Context(), oldest)
	b.dequeues.settle(t, 0)
	if asked := b.dequeues.n.Load() - before; asked > 0 {
		t.Errorf("%d dequeues for tasks that another worker takes", asked)
	}
	oldest = b.server.waiting.helpOthers(t.Context(), oldest)
	for _, want := range []uuid.UUID{stuck, next} {
		if got := receive(t, b.handled); got != want {
			t.Errorf("handled %s, want %s", got, want)
		}
	}
	b.dequeues.settle(t, before+3)
	write()
	b.server.waiting.helpOthers(t.Context(), oldest)
	b.dequeues.settle(t, 0)
	if asked := b.dequeues.n.Load() - before; asked != 3 {
		t.Errorf("%d dequeues, want 3: the task that did not move, the next one, and none", asked)
	}
	for range manyTasks - 1 {
		write()
	}
	b.server.waiting.helpOthers(t.Context(), nil)
	for range manyTasks {
		receive(t, b.handled)
	}
}

// Where a worker may have missed events it dequeues, of its own partitions only.
func TestWakeOwn(t *testing.T) {
	t.Parallel()
	b := serveBeside(t)
	want := int64(0) // two for each of its own: after the wake-up, and when Asynq dequeues again
	for partition := range partitions {
		if !b.theirs(partition) {
			want += 2
		}
	}
	before := b.dequeues.n.Load()
	b.server.waiting.wakeOwn()
	b.dequeues.settle(t, before+want)
	if asked := b.dequeues.n.Load() - before; asked != want {
		t.Errorf("%d dequeues, want %d, of its own partitions only", asked, want)
	}
}

// After a worker has withdrawn, the others serve its partitions at once.
func TestAssignment_Withdraw(t *testing.T) {
	t.Parallel()
	b := serveBeside(t)
	left := map[uuid.UUID]bool{} // tasks for which no worker is woken
	for partition := range partitions {
		if b.theirs(partition) {
			task := Task{AccountID: accountOf(partition), JobID: uuid.New()}
			if err := clientOf(b.client).Enqueue(t.Context(), task); err != nil {
				t.Fatal(err)
			}
			left[task.JobID] = true
		}
	}
	b.other.withdraw(t.Context())
	for len(left) > 0 {
		delete(left, receive(t, b.handled))
	}
}

// Workers share the partitions about evenly, and a worker that stops moves no partitions but
// its own.
func TestAssign(t *testing.T) {
	t.Parallel()
	const many, workers = 1000, 4
	var ids []string
	var all []*assignment
	for range workers {
		p := newAssignment(nil, queuesOf(many), slog.New(slog.DiscardHandler))
		ids, all = append(ids, p.id), append(all, p)
	}
	owned := func(p *assignment) int { return many - len(*p.elsewhere.Load()) }
	if owned(all[0]) != many {
		t.Errorf("a single worker has %d of %d", owned(all[0]), many)
	}
	total := 0
	for _, p := range all {
		p.assign(ids)
		total += owned(p)
		if owned(p) < many/workers/2 || owned(p) > many/workers*2 {
			t.Errorf("one of %d workers has %d of %d", workers, owned(p), many)
		}
	}
	if total != many {
		t.Errorf("%d partitions of %d have a worker", total, many)
	}
	before := *all[0].elsewhere.Load()
	all[0].assign(ids[:workers-1])
	for partition := range many {
		if !before[queues.pending(partition)] && all[0].isElsewhere(queues.pending(partition)) {
			t.Errorf("partition %d has moved when another worker stopped", partition)
		}
	}
}
