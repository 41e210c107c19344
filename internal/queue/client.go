package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Bounds of the client.
const (
	// maxNotifications is how many notifications wait to be written; more are lost to the
	// sweep.
	maxNotifications = 65536
	// writers is how many tasks are being written at once.
	writers = 4
	// maxCollected bounds how many notifications are written together. A script of Redis's
	// takes no more than 8,000 of them (LUAI_MAXCSTACK), should one partition have all.
	maxCollected = 4096
	// maxNotified bounds the notifications of a partition in Redis, some 60 bytes each,
	// so that they don't fill it while the workers are away. The workers' sweep finds the
	// jobs beyond.
	maxNotified = 10_000
	// ringTimeout bounds one write, so that a Redis that hangs is noticed.
	ringTimeout = time.Second
	// drainTimeout bounds what is written after the end was announced.
	drainTimeout = 3 * time.Second
	// announceEvery is how often an Asynq client is made anew: each announces
	// the queues it writes to once, and a Redis that came back empty has
	// forgotten them, to the dashboard's and the metrics' harm.
	announceEvery = 10 * time.Second
	// ticketTimeout is when Asynq gives a ticket to somebody else though its
	// worker still lives. Postgres's own time-outs end the work long before, but
	// where very many accounts that share the ticket meet one each.
	ticketTimeout = time.Minute
	// maxRetry is Asynq's count of tries for a ticket. It only has to outlast
	// the tries of the jobs before its own; what those run out of is counted
	// in Postgres.
	maxRetry = 1000
)

// Client writes tasks and notifications.
type Client struct {
	redis         redis.UniversalClient
	queues        Queues
	log           *slog.Logger
	notifications chan Notification
	lost          func() // told of each notification that was not written
}

// NewClient writes to queues. lost is called for each notification that could not be
// written. Run must run for Notify to work.
func NewClient(r redis.UniversalClient, queues Queues, log *slog.Logger, lost func()) *Client {
	return &Client{redis: r, queues: queues, log: log, notifications: make(chan Notification, maxNotifications), lost: lost}
}

// Enqueue writes a ticket now. One that is there already is a success.
func (c *Client) Enqueue(ctx context.Context, ticket Ticket) error {
	if err := c.queues.Owner.Err(); err != nil {
		return err
	}
	client := asynq.NewClientFromRedisClient(c.redis)
	return enqueue(ctx, client, c.queues.Of(ticket.AccountID), ticket.id(), []Notification{{JobID: ticket.JobID, AccountID: ticket.AccountID, Jobs: 1}})
}

func enqueue(ctx context.Context, client *asynq.Client, queue, id string, notifications []Notification) error {
	_, err := client.EnqueueContext(ctx, newTask(notifications),
		asynq.TaskID(id), asynq.Queue(queue), asynq.MaxRetry(maxRetry), asynq.Timeout(ticketTimeout))
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue ticket %s: %w", id, err)
	}
	return nil
}

// Place is where a ticket is in Redis.
type Place struct {
	Position
	// Due is when one that is PutOff comes back in line, to the second and by
	// the clock of the worker that wrote it: that can be an hour from the truth,
	// so it only tells one try from the next.
	Due time.Time
}

// Position is what can be said of a ticket.
type Position int

// The positions.
const (
	Gone Position = iota
	InLine
	InHand // of a worker, which may be dead
	PutOff // until its next try
)

// ErrAway is returned in place of asking a Redis that has just not answered.
var ErrAway = errors.New("Redis does not answer") //nolint:staticcheck // a name

// IsAnswer tells an error that Redis answered with, which concerns what it was asked,
// from a Redis that did not answer.
func IsAnswer(err error) bool {
	_, answered := errors.AsType[redis.Error](err)
	return answered
}

// Find looks for a task. Asynq's Inspector takes no context, and would wait for a
// Redis that hangs for longer than a sweep may take.
func (c *Client) Find(ctx context.Context, ticket Ticket) (Place, error) {
	if err := c.queues.Owner.Err(); err != nil {
		return Place{}, err
	}
	keys := keysOf(c.queues.Of(ticket.AccountID))
	var state *redis.StringCmd
	var due *redis.FloatCmd
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error { // of an answer, the first one's
		state = p.HGet(ctx, keys+"t:"+ticket.id(), "state")
		due = p.ZScore(ctx, keys+"retry", ticket.id())
		return nil
	})
	if err = cmp.Or(unlessNil(state.Err()), unlessNil(due.Err()), unlessNil(err)); err != nil {
		return Place{}, fmt.Errorf("look for ticket of job %s: %w", ticket.JobID, err)
	}
	switch state.Val() {
	case "pending":
		return Place{Position: InLine}, nil
	case "active":
		return Place{Position: InHand}, nil
	case "retry":
		return Place{Position: PutOff, Due: time.Unix(int64(due.Val()), 0)}, nil
	default: // not there, or archived: it will not be applied
		return Place{}, nil
	}
}

// unlessNil is the error, but for that of a key that is not there.
func unlessNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

// Lines are the pending lists, by partition.
type Lines struct {
	lists []List
}

// List is what is known of a partition's pending list.
type List struct {
	Oldest   string // the name of the task that is taken next; empty where none is there
	Notified bool   // notifications wait for a task to take them
	Paused   bool   // by an operator
	Err      error  // why the rest is not known
}

// Lines looks at every partition's pending list. An error concerns its list alone.
func (c *Client) Lines(ctx context.Context) Lines {
	partitions := c.queues.Partitions
	if err := c.queues.Owner.Err(); err != nil {
		return Lines{slices.Repeat([]List{{Err: err}}, partitions)}
	}
	oldest, paused := make([]*redis.StringCmd, partitions), make([]*redis.StringCmd, partitions)
	notified := make([]*redis.IntCmd, partitions)
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition := range partitions {
			oldest[partition] = p.LIndex(ctx, c.queues.line(partition), -1)
			paused[partition] = p.Get(ctx, keysOf(c.queues.Name(partition))+"paused")
			notified[partition] = p.Exists(ctx, c.queues.notified(partition))
		}
		return nil
	})
	var unanswered error // that of all of them, where Redis was not there to be asked
	if err != nil && !IsAnswer(err) {
		unanswered = err
	}
	lists := make([]List, partitions)
	for partition := range lists {
		lists[partition] = List{
			Oldest:   oldest[partition].Val(),
			Notified: notified[partition].Val() > 0,
			Paused:   paused[partition].Err() == nil,
			Err:      cmp.Or(unlessNil(oldest[partition].Err()), unlessNil(paused[partition].Err()), notified[partition].Err(), unanswered),
		}
	}
	return Lines{lists}
}

// Of returns the pending list of the account's partition.
func (l Lines) Of(accountID int64) List {
	if len(l.lists) == 0 {
		return List{}
	}
	return l.lists[Partition(accountID, len(l.lists))]
}
