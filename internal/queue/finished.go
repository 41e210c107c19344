package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const (
	// maxUnpublished is how many batches of finished jobs wait in memory for Redis. The jobs of
	// later batches are not published.
	maxUnpublished = 1024
	// maxPublished is about how many jobs a message names, in 24 KiB.
	maxPublished = 1024
	// silence is how long a subscription receives nothing before it pings Redis, and how long it
	// then waits for the answer.
	silence = time.Second
	// resubscribeAfter is the pause after a lost subscription.
	resubscribeAfter = 100 * time.Millisecond
)

// Finished names a job that a worker finished.
type Finished struct {
	JobID     uuid.UUID
	AccountID int64
}

// finishedChannel is the channel of the messages that name finished jobs.
func (q Queues) finishedChannel() string { return q.Prefix + ":finished" }

// Publisher tells the API processes which jobs a worker finished. No apply waits for it. A
// lost message costs only time, because an API also looks into Postgres. A message only says
// that there is something to read, so a forged one costs a read.
type Publisher struct {
	redis    redis.UniversalClient
	queues   Queues
	log      *slog.Logger
	finished chan []Finished
	dropped  func(jobs int) // called for jobs that were not published
}

// NewPublisher makes a publisher for all API processes of the queues' installation. It calls
// dropped with the number of jobs that it could not publish. Publish needs a running Run.
func NewPublisher(r redis.UniversalClient, queues Queues, log *slog.Logger, dropped func(jobs int)) *Publisher {
	return &Publisher{redis: r, queues: queues, log: log, finished: make(chan []Finished, maxUnpublished), dropped: dropped}
}

// Publish publishes jobs whose ends are durable. It doesn't wait.
func (p *Publisher) Publish(jobs []Finished) {
	select {
	case p.finished <- jobs:
	default:
		p.dropped(len(jobs))
	}
}

// Run publishes until ctx ends, by when the worker must have applied its last job. Then Run
// publishes the jobs that still wait, unless Redis fails. Jobs that arrive while a message is
// sent share the next message.
func (p *Publisher) Run(ctx context.Context) error {
	for {
		select {
		case first := <-p.finished:
			p.send(ctx, p.collect(first))
		case <-ctx.Done():
			for len(p.finished) > 0 && p.send(ctx, p.collect(<-p.finished)) {
			}
			return nil
		}
	}
}

// collect takes the batches that have arrived since first.
func (p *Publisher) collect(first []Finished) []Finished {
	all := first
	for len(all) < maxPublished && len(p.finished) > 0 {
		all = append(all, <-p.finished...)
	}
	return all
}

// send publishes the jobs in one message. It returns false where Redis fails.
func (p *Publisher) send(ctx context.Context, jobs []Finished) (sent bool) {
	err := p.queues.Owner.Err()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		err = p.redis.Publish(ctx, p.queues.finishedChannel(), finishedMessage(jobs)).Err()
	}
	if err != nil {
		p.dropped(len(jobs))
		p.log.Debug("finished jobs not published", "error", err)
	}
	return err == nil
}

// finishedBytes is what a message holds of a job: its id and its account's.
const finishedBytes = len(uuid.UUID{}) + 8

func finishedMessage(jobs []Finished) []byte {
	message := make([]byte, 0, len(jobs)*finishedBytes)
	for _, job := range jobs {
		message = append(message, job.JobID[:]...)
		message = binary.BigEndian.AppendUint64(message, uint64(job.AccountID)) //nolint:gosec // the bits
	}
	return message
}

// parseFinished reads what finishedMessage wrote. It returns nothing for a message of another
// length.
func parseFinished(message string) (jobs []Finished) {
	if len(message)%finishedBytes != 0 {
		return nil
	}
	jobs = make([]Finished, len(message)/finishedBytes)
	for i := range jobs {
		text := message[i*finishedBytes:][:finishedBytes]
		n := copy(jobs[i].JobID[:], text)
		jobs[i].AccountID = int64(binary.BigEndian.Uint64([]byte(text[n:]))) //nolint:gosec // the bits
	}
	return jobs
}

// Subscription receives which jobs the workers finished.
type Subscription struct {
	redis  redis.UniversalClient
	queues Queues
	log    *slog.Logger
}

// NewSubscription makes a subscription to the finished jobs of the queues' installation.
func NewSubscription(r redis.UniversalClient, queues Queues, log *slog.Logger) *Subscription {
	return &Subscription{redis: r, queues: queues, log: log}
}

// Run calls finished with the jobs of each message, until ctx ends. It calls listening(true) each
// time it has subscribed, because earlier messages may be lost, and listening(false) when it has
// lost the subscription. It makes one call at a time.
func (s *Subscription) Run(ctx context.Context, finished func([]Finished), listening func(bool)) {
	for ctx.Err() == nil {
		err := s.listen(ctx, finished, listening)
		listening(false)
		s.log.Debug("no subscription to finished jobs", "error", err)
		select {
		case <-time.After(resubscribeAfter):
		case <-ctx.Done():
		}
	}
}

// listen subscribes, and returns the error that ended the subscription. It does not use go-redis's
// own loop: that subscribes again without saying so, and a frozen Redis would look like one where
// no job finishes.
func (s *Subscription) listen(ctx context.Context, finished func([]Finished), listening func(bool)) error {
	subscription := s.redis.Subscribe(ctx, s.queues.finishedChannel())
	defer subscription.Close()                                          //nolint:errcheck // it is lost, or needed no more
	defer context.AfterFunc(ctx, func() { _ = subscription.Close() })() // ends a receive
	for isPinged := false; ; {
		if err := s.queues.Owner.Err(); err != nil {
			return err
		}
		event, err := subscription.ReceiveTimeout(ctx, silence)
		if errors.Is(err, os.ErrDeadlineExceeded) && !isPinged {
			isPinged = true
			if err = subscription.Ping(ctx); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		isPinged = false
		switch event := event.(type) {
		case *redis.Subscription:
			listening(true)
		case *redis.Message:
			finished(parseFinished(event.Payload))
		}
	}
}
