package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

const (
	// requestTimeout bounds one exchange with Redis, so that a Redis that hangs is noticed.
	requestTimeout = time.Second
	// taskTimeout is how long a worker may handle a task before Asynq gives the task to
	// another worker too. Postgres's own time-outs end the work long before, unless very many
	// accounts of the task each meet one.
	taskTimeout = time.Minute
	// maxRetry bounds Asynq's attempts of a task. It is high, because one task may need several
	// attempts for each earlier job of its account. Postgres bounds the attempts of each job.
	maxRetry = 1000
)

// Client writes tasks and notifications.
type Client struct {
	redis         redis.UniversalClient
	queues        Queues
	log           *slog.Logger
	notifications chan Notification
	dropped       func() // called for each notification that was not written
}

// NewClient makes a client that writes to queues. The client calls dropped for each
// notification that it could not write. Notify needs a running Run.
func NewClient(r redis.UniversalClient, queues Queues, log *slog.Logger, dropped func()) *Client {
	return &Client{redis: r, queues: queues, log: log, notifications: make(chan Notification, maxNotifications), dropped: dropped}
}

// Enqueue writes a task now. It returns nil, too, if the task exists already.
func (c *Client) Enqueue(ctx context.Context, task Task) error {
	if err := c.queues.Owner.Err(); err != nil {
		return err
	}
	client := asynq.NewClientFromRedisClient(c.redis)
	return enqueue(ctx, client, c.queues.Of(task.AccountID), task.id(), []Notification{{JobID: task.JobID, AccountID: task.AccountID, Jobs: 1}})
}

func enqueue(ctx context.Context, client *asynq.Client, queue, id string, notifications []Notification) error {
	_, err := client.EnqueueContext(ctx, newTask(notifications),
		asynq.TaskID(id), asynq.Queue(queue), asynq.MaxRetry(maxRetry), asynq.Timeout(taskTimeout))
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue task %s: %w", id, err)
	}
	return nil
}

// ErrNoAnswer is returned without a call to Redis, after an earlier call got no answer.
var ErrNoAnswer = errors.New("Redis does not answer") //nolint:staticcheck // a name

// IsAnswer is true for an error that Redis itself returned: it concerns that command alone.
// It is false if Redis did not answer.
func IsAnswer(err error) bool {
	_, answered := errors.AsType[redis.Error](err)
	return answered
}

// Find reads where a task is. It does not use Asynq's Inspector, which takes no context: if
// Redis hangs, the Inspector waits for longer than a sweep may take.
func (c *Client) Find(ctx context.Context, task Task) (TaskInfo, error) {
	if err := c.queues.Owner.Err(); err != nil {
		return TaskInfo{}, err
	}
	keys := keysOf(c.queues.Of(task.AccountID))
	var state *redis.StringCmd
	var retryAt *redis.FloatCmd
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error { // if Redis answered, err is the first command's
		state = p.HGet(ctx, keys+"t:"+task.id(), "state")
		retryAt = p.ZScore(ctx, keys+"retry", task.id())
		return nil
	})
	if err = cmp.Or(unlessNil(state.Err()), unlessNil(retryAt.Err()), unlessNil(err)); err != nil {
		return TaskInfo{}, fmt.Errorf("find task of job %s: %w", task.JobID, err)
	}
	switch state.Val() {
	case "pending":
		return TaskInfo{State: TaskPending}, nil
	case "active":
		return TaskInfo{State: TaskActive}, nil
	case "retry":
		return TaskInfo{State: TaskRetry, RetryAt: time.Unix(int64(retryAt.Val()), 0)}, nil
	default: // not there, or archived: no worker will handle it
		return TaskInfo{}, nil
	}
}

// unlessNil is the error, but nil where it only says that a key does not exist.
func unlessNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}
