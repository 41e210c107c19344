package queue

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/crash"
)

// ring is what Ring was asked for.
type ring struct {
	accountID, position int64
	jobID               uuid.UUID
}

// Run writes what Ring was asked for until ctx ends, and then what is left, for
// as long as Redis takes it and no longer than drainTimeout.
func (c *Client) Run(ctx context.Context) error {
	writing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })
	renew := time.NewTicker(announceEvery)
	defer renew.Stop()
	w := newWriter(c)
	pause := lookEvery // doubles while no ring waits
	look := time.NewTimer(pause)
	defer look.Stop()
	for looking := true; ctx.Err() == nil; {
		select {
		case first := <-c.rings:
			w.take(first)
			looking = looking && pause == lookEvery
			pause = lookEvery
		case <-look.C:
			w.look(writing)
			looking = false
			if pause = min(2*pause, longestLook); w.waits() {
				pause = lookEvery
			}
		case <-renew.C:
			w.asynq = asynq.NewClientFromRedisClient(c.redis)
		case <-ctx.Done():
		}
		began := time.Now()
		if tickets := w.due(began, longestWait); len(tickets) > 0 {
			w.write(writing, tickets)
			select {
			case <-time.After(min(restShare*time.Since(began), c.rest)):
			case <-ctx.Done():
			}
		}
		if !looking && len(w.lines) > 0 {
			look.Reset(pause)
			looking = true
		}
	}
	for written := true; written && writing.Err() == nil; {
		select {
		case first := <-c.rings:
			w.take(first)
		default:
			w.write(writing, w.due(time.Now(), 0))
			return nil
		}
		written = w.write(writing, w.due(time.Now(), 0))
	}
	return nil
}

// writer turns rings into tickets. It is Run's alone.
type writer struct {
	*Client
	asynq *asynq.Client
	lines map[int]*waiting // by partition; those that have rings, or tickets in line
}

// waiting is a partition's rings that have no ticket yet.
type waiting struct {
	rings   []ring        // the last of each account
	account map[int64]int // where an account's is
	since   time.Time     // of the first
	length  int           // of the partition's line, as far as we know
}

func newWriter(c *Client) *writer {
	return &writer{Client: c, asynq: asynq.NewClientFromRedisClient(c.redis), lines: map[int]*waiting{}}
}

// take takes the rings that are there with the first.
func (w *writer) take(first ring) {
	w.add(first)
	for range maxCollected {
		select {
		case next := <-w.rings:
			w.add(next)
		default:
			return
		}
	}
}

// add keeps the last ring of each account: its job's ticket is for those before it, too.
func (w *writer) add(next ring) {
	partition := Partition(next.accountID, w.queues.Partitions)
	line := w.lines[partition]
	if line == nil {
		line = &waiting{}
		w.lines[partition] = line
	}
	if len(line.rings) == 0 {
		line.account, line.since = map[int64]int{}, time.Now()
	}
	i, known := line.account[next.accountID]
	switch {
	case !known:
		line.account[next.accountID] = len(line.rings)
		line.rings = append(line.rings, next)
	case next.position > line.rings[i].position:
		line.rings[i] = next
	}
}

// due takes the rings whose partition's line is short, or that have waited for long
// enough, as tickets: for up to maxShared accounts each, the first accounts first. Those
// of a partition with maxPending tasks it leaves to the sweep.
func (w *writer) due(now time.Time, wait time.Duration) (tickets []shared) {
	for partition, line := range w.lines {
		if len(line.rings) == 0 || line.length >= longLine && now.Sub(line.since) < wait {
			continue
		}
		for some := range slices.Chunk(line.rings, maxShared) {
			if line.length >= maxPending {
				w.leave(some)
				continue
			}
			ticket := shared{partition: partition}
			for _, ring := range some {
				ticket.jobs = append(ticket.jobs, ring.jobID)
			}
			tickets = append(tickets, ticket)
			line.length++
		}
		line.rings = nil
	}
	return tickets
}

// leave leaves notifications to the sweep, and counts them.
func (w *writer) leave(rings []ring) {
	for range rings {
		w.lost()
	}
}

// look looks how long the lines are. Of a Redis that does not say it, none is long.
func (w *writer) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	lengths := make(map[int]*redis.IntCmd, len(w.lines))
	_, err := w.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition := range w.lines {
			lengths[partition] = p.LLen(ctx, w.queues.line(partition))
		}
		return nil
	})
	if err != nil {
		w.log.Debug("don't know how long the lines are", "error", err)
	}
	for partition, length := range lengths {
		known := w.lines[partition]
		if known.length = int(length.Val()); known.length == 0 && len(known.rings) == 0 { // 0 where it was not answered
			delete(w.lines, partition)
		}
	}
}

// waits tells whether any ring waits.
func (w *writer) waits() bool {
	for _, line := range w.lines {
		if len(line.rings) > 0 {
			return true
		}
	}
	return false
}

// shared is a ticket for several accounts of a partition.
type shared struct {
	partition int
	jobs      []uuid.UUID
}

// write writes tickets, up to the first that Redis does not take within ringTimeout:
// the others would fare no better, and somebody may wait for the end.
func (w *writer) write(ctx context.Context, tickets []shared) (written bool) {
	if len(tickets) == 0 {
		return true
	}
	crash.At(crash.RingTaken)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for _, ticket := range tickets {
		group.Go(func() error {
			err := cmp.Or(ctx.Err(), w.queues.Owner.Err()) // the first of another's failure, perhaps
			if err == nil {
				err = w.writeOne(ctx, ticket)
			}
			if err != nil {
				for range ticket.jobs {
					w.lost()
				}
			}
			return err
		})
	}
	err := group.Wait()
	if err != nil {
		w.log.Debug("rings lost, the sweep will find their jobs", "error", err)
	}
	return err == nil
}

func (w *writer) writeOne(ctx context.Context, ticket shared) error {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	err := enqueue(ctx, w.asynq, w.queues.Name(ticket.partition), ticket.jobs[0].String(), ticket.jobs)
	crash.At(crash.RingWritten)
	return err
}
