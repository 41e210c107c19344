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

// Each partition's tickets go to the one worker that is preferred for it, as soon as
// both are there, and both have some; the other does not ask Redis for them.
func TestPreference(t *testing.T) {
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
			s.bell.withBell, s.bell.every, s.prefer.every = time.Hour, time.Hour, time.Hour
			servers = append(servers, s)
		})
		dequeues.settle(t, partitions) // the first listens, too
	}
	bothKnown := func() bool {
		others := len(*servers[0].prefer.others.Load()) + len(*servers[1].prefer.others.Load())
		return others == partitions
	}
	testenv.Eventually(t, "the workers to know each other", bothKnown)
	dequeues.settle(t, 2*partitions)
	before := dequeues.n.Load()
	took := map[int]int{}
	tickets := ticketsOf(client)
	for partition := range partitions {
		ticket := Ticket{AccountID: accountOf(partition), JobID: uuid.New()}
		if err := tickets.Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		n := receive(t, handled)
		if servers[n].prefer.isOther(queues.line(partition)) {
			t.Errorf("partition %d was served by the other worker", partition)
		}
		took[n]++
	}
	if took[0] == 0 || took[1] == 0 {
		t.Errorf("the workers had %v tickets", took)
	}
	// The preferred worker asks for the ticket and then once more.
	if asked := dequeues.n.Load() - before; asked > 2*partitions {
		t.Errorf("%d dequeues for %d tickets", asked, partitions)
	}
}

// settle waits until so many queues have been asked, and nobody asks any more.
func (c *countDequeues) settle(t *testing.T, least int64) {
	t.Helper()
	last := int64(-1)
	testenv.Eventually(t, "the workers to wait for the bell", func() bool {
		<-time.After(250 * time.Millisecond)
		now := c.n.Load()
		settled := now == last && now >= least
		last = now
		return settled
	})
}

// accountOf is an account of a partition.
func accountOf(partition int) int64 {
	for id := int64(1); ; id++ {
		if Partition(id, partitions) == partition {
			return id
		}
	}
}

// A worker that has died without a word, or has its hands full, holds its
// partitions up for a moment only.
func TestPreference_Dead(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	handled := make(chan uuid.UUID, 1)
	var server *Server
	serve(t, client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		handled <- jobs[0].JobID
		return nil, nil, nil
	}, func(s *Server) {
		s.bell.withBell = time.Hour
		server = s
	})
	dead := newPreference(client, queues, slog.New(slog.DiscardHandler))
	busy, died := context.WithCancel(t.Context()) // it says that it is there, and takes nothing
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
	testenv.Eventually(t, "the dead worker to be preferred for some", func() bool { return len(*server.prefer.others.Load()) > 0 })
	for partition := range partitions {
		ticket := Ticket{AccountID: accountOf(partition), JobID: uuid.New()}
		if err := ticketsOf(client).Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, handled); got != ticket.JobID {
			t.Errorf("handed out %s, want %s", got, ticket.JobID)
		}
	}
	died()
	<-announced
	testenv.Eventually(t, "the dead worker to be forgotten", func() bool { return len(*server.prefer.others.Load()) == 0 })
}

// A worker that came while nothing could be heard is known as soon as it can.
func TestPreference_Unheard(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	dequeues := new(countDequeues)
	client.AddHook(dequeues)
	var server *Server
	serve(t, client, nil, func(s *Server) {
		s.bell.withBell, s.bell.every, s.prefer.every = time.Hour, time.Hour, time.Hour
		server = s
	})
	dequeues.settle(t, partitions)
	if err := client.ZAdd(t.Context(), queues.workersKey(), redis.Z{Score: float64(time.Now().Unix()), Member: "unheard"}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the other worker to be preferred for some", func() bool { return len(*server.prefer.others.Load()) > 0 })
}

// beside is a server that nothing wakes but its bell, and another worker that is there
// and does nothing.
type beside struct {
	client   redis.UniversalClient
	dequeues *countDequeues
	handled  chan uuid.UUID
	server   *Server
	other    *preference
}

// theirs tells whether the other worker is preferred for a partition.
func (b *beside) theirs(partition int) bool { return b.server.prefer.isOther(queues.line(partition)) }

func serveBeside(t *testing.T) *beside {
	t.Helper()
	b := &beside{client: connect(t, testenv.Redis(t)), dequeues: new(countDequeues), handled: make(chan uuid.UUID, 1)}
	b.client.AddHook(b.dequeues)
	serve(t, b.client, func(_ context.Context, jobs []Notification) (_, _ []Notification, _ error) {
		b.handled <- jobs[0].JobID
		return nil, nil, nil
	}, func(s *Server) {
		s.bell.withBell, s.bell.every, s.prefer.every = time.Hour, time.Hour, time.Hour
		b.server = s
	})
	b.other = newPreference(b.client, queues, slog.New(slog.DiscardHandler))
	testenv.Eventually(t, "the other worker to be preferred for some", func() bool {
		_, err := b.other.announce(t.Context())
		return err == nil && len(*b.server.prefer.others.Load()) > 0
	})
	b.dequeues.settle(t, partitions)
	return b
}

// A worker leaves another's tickets alone for as long as that one takes them, and
// helps where one is stuck, or many wait, until there is none.
func TestPreference_Stuck(t *testing.T) {
	t.Parallel()
	b := serveBeside(t)
	theirs := 0
	for !b.theirs(theirs) {
		theirs++
	}
	write := func() uuid.UUID {
		ticket := Ticket{AccountID: accountOf(theirs), JobID: uuid.New()}
		if err := ticketsOf(b.client).Enqueue(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		return ticket.JobID
	}
	before := b.dequeues.n.Load()
	write()
	oldest := b.server.bell.lookAtOthers(t.Context(), nil)
	if err := b.client.RPop(t.Context(), queues.line(theirs)).Err(); err != nil { // the other worker takes it
		t.Fatal(err)
	}
	stuck, next := write(), write()
	oldest = b.server.bell.lookAtOthers(t.Context(), oldest)
	b.dequeues.settle(t, 0)
	if asked := b.dequeues.n.Load() - before; asked > 0 {
		t.Errorf("%d dequeues for tickets that another worker takes", asked)
	}
	oldest = b.server.bell.lookAtOthers(t.Context(), oldest)
	for _, want := range []uuid.UUID{stuck, next} {
		if got := receive(t, b.handled); got != want {
			t.Errorf("handed out %s, want %s", got, want)
		}
	}
	b.dequeues.settle(t, before+3)
	write()
	b.server.bell.lookAtOthers(t.Context(), oldest)
	b.dequeues.settle(t, 0)
	if asked := b.dequeues.n.Load() - before; asked != 3 {
		t.Errorf("%d dequeues, want 3: for the stuck ticket, the next, and none", asked)
	}
	for range manyWait - 1 {
		write()
	}
	b.server.bell.lookAtOthers(t.Context(), nil)
	for range manyWait {
		receive(t, b.handled)
	}
}

// Where events may have been missed, a worker looks for tickets of its own partitions.
func TestPreference_RingsForItsOwn(t *testing.T) {
	t.Parallel()
	b := serveBeside(t)
	want := int64(0) // two for each of its own: when it rings, and when Asynq comes again
	for partition := range partitions {
		if !b.theirs(partition) {
			want += 2
		}
	}
	before := b.dequeues.n.Load()
	b.server.bell.ringOwn()
	b.dequeues.settle(t, before+want)
	if asked := b.dequeues.n.Load() - before; asked != want {
		t.Errorf("%d dequeues, want %d: for the partitions of its own alone", asked, want)
	}
}

// Where a worker takes its leave, the others serve its partitions at once.
func TestPreference_Leave(t *testing.T) {
	t.Parallel()
	b := serveBeside(t)
	left := map[uuid.UUID]bool{} // tickets that nobody is woken for
	for partition := range partitions {
		if b.theirs(partition) {
			ticket := Ticket{AccountID: accountOf(partition), JobID: uuid.New()}
			if err := ticketsOf(b.client).Enqueue(t.Context(), ticket); err != nil {
				t.Fatal(err)
			}
			left[ticket.JobID] = true
		}
	}
	b.other.leave(t.Context())
	for len(left) > 0 {
		delete(left, receive(t, b.handled))
	}
}

// Workers share the partitions about evenly, and one that comes or goes moves no
// others than its own.
func TestSpread(t *testing.T) {
	t.Parallel()
	const many, workers = 1000, 4
	var ids []string
	var all []*preference
	for range workers {
		p := newPreference(nil, queuesOf(many), slog.New(slog.DiscardHandler))
		ids, all = append(ids, p.id), append(all, p)
	}
	owned := func(p *preference) int { return many - len(*p.others.Load()) }
	if owned(all[0]) != many {
		t.Errorf("alone, a worker has %d of %d", owned(all[0]), many)
	}
	total := 0
	for _, p := range all {
		p.spread(ids)
		total += owned(p)
		if owned(p) < many/workers/2 || owned(p) > many/workers*2 {
			t.Errorf("one of %d workers has %d of %d", workers, owned(p), many)
		}
	}
	if total != many {
		t.Errorf("%d partitions of %d have a worker", total, many)
	}
	before := *all[0].others.Load()
	all[0].spread(ids[:workers-1])
	for partition := range many {
		if !before[queues.line(partition)] && all[0].isOther(queues.line(partition)) {
			t.Errorf("partition %d has moved away when another worker went", partition)
		}
	}
}
