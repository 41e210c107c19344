// Package finished tells an API process which jobs have finished, whichever worker applied them.
// Its promise: a lost message costs time and nothing else, and each job that a waiter gets is
// durable.
package finished

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/time/rate"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
)

const (
	// awayEvery is how often the hub looks into Postgres while it has no subscription.
	awayEvery = 250 * time.Millisecond
	// jobsEvery and accountsEvery are how often it looks while it has one, for messages that were
	// lost.
	jobsEvery     = time.Second
	accountsEvery = 5 * time.Second
	// After a look, the hub rests restShare times as long as the look took, if that is longer than the
	// interval above.
	restShare = 4
	// readTimeout bounds a statement.
	readTimeout = 1500 * time.Millisecond
	// logInterval is how often an error is logged at most.
	logInterval = 10 * time.Second
)

// Messages tells of finished jobs until ctx ends, as queue.Subscription does: the comment of its Run
// says when it calls which function. It is an interface because most of the API's tests have no
// Redis.
type Messages interface {
	Run(ctx context.Context, finished func([]queue.Finished), listening func(bool))
}

// Hub gives waiters the jobs that they wait for, and tells watchers that something in their account
// may have changed.
//
// It hears the messages of the workers. They may be lost: a worker is killed before it sends
// one, a connection breaks, Redis is away. So the hub also looks into Postgres: for all jobs that
// are waited for, and for all accounts that are watched, many in one statement. At rest it asks
// Postgres nothing.
type Hub struct {
	messages Messages
	pool     *pgxpool.Pool
	jobs     *job.Reader
	log      *slog.Logger
	logs     rate.Sometimes // bounds the lines of an outage of Postgres

	lookAtJobsNow, lookAtAccountsNow chan struct{} // signal that messages may have been lost (buffer of 1)
	isDue                            chan struct{} // signals that due has jobs (buffer of 1)

	mu        sync.Mutex // guards the fields below
	listening bool       // messages arrive
	accounts  map[int64]*account
	waiting   map[uuid.UUID]*waitingJob
	waiters   int               // of all jobs
	waitersOf map[uuid.UUID]int // by user
	reads     uint64            // that have begun
	due       []uuid.UUID       // jobs that are waited for and have finished, as a message said
	recent    recent
}

// New makes a hub that reads the database behind pool. Run runs it.
func New(messages Messages, pool *pgxpool.Pool, log *slog.Logger) *Hub {
	return &Hub{
		messages: messages, pool: pool, jobs: job.NewReader(pool), log: log, logs: rate.Sometimes{Interval: logInterval},
		lookAtJobsNow: make(chan struct{}, 1), lookAtAccountsNow: make(chan struct{}, 1), isDue: make(chan struct{}, 1),
		accounts: map[int64]*account{}, waiting: map[uuid.UUID]*waitingJob{}, waitersOf: map[uuid.UUID]int{}, recent: newRecent(),
	}
}

// Run receives messages and looks into Postgres until ctx ends. By then the API must have answered
// its last request.
func (h *Hub) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { h.messages.Run(ctx, h.heard, h.setListening) })
	parts.Go(func() { h.readDue(ctx) })
	parts.Go(func() { h.keepLooking(ctx, h.lookAtJobsNow, jobsEvery, h.lookAtJobs) })
	parts.Go(func() { h.keepLooking(ctx, h.lookAtAccountsNow, accountsEvery, h.lookAtAccounts) })
	parts.Wait()
	return nil
}

// keepLooking looks whenever now signals, and else every so often, until ctx ends.
func (h *Hub) keepLooking(ctx context.Context, now <-chan struct{}, every time.Duration, look func(context.Context) error) {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rest.C:
		case <-now:
		}
		began := time.Now()
		if err := look(ctx); err != nil && ctx.Err() == nil {
			h.logs.Do(func() { h.log.Warn("could not look for finished jobs", "error", err) })
		}
		pause := every
		if !h.isListening() {
			pause = awayEvery
		}
		rest.Reset(max(pause, restShare*time.Since(began)))
	}
}

func (h *Hub) isListening() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.listening
}

// setListening looks at once where messages begin to arrive, or cease: some may be lost.
func (h *Hub) setListening(listening bool) {
	h.mu.Lock()
	changed := h.listening != listening
	h.listening = listening
	h.mu.Unlock()
	if listening || changed {
		signal(h.lookAtJobsNow)
		signal(h.lookAtAccountsNow)
	}
}

// heard has the jobs read that are waited for, and signals the watchers of the accounts. A
// message can name any job: it makes the hub, or a watcher, look, and nothing else.
func (h *Hub) heard(jobs []queue.Finished) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, job := range jobs {
		h.recent.add(job.JobID)
		h.setDue(job.JobID)
		if account := h.accounts[job.AccountID]; account != nil {
			account.signal()
		}
	}
}

// signal sends to a channel with a buffer of 1, unless a signal is waiting there.
func signal(to chan<- struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}
