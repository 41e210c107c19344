// Package finished tells an API process which jobs have finished, whichever worker applied them.
// Its promise: a message that is lost costs time and nothing else.
package finished

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/queue"
)

const (
	// awayEvery is how often the hub looks into Postgres while it has no subscription.
	awayEvery = 250 * time.Millisecond
	// accountsEvery is how often it looks while it has one, for messages that were lost.
	accountsEvery = 5 * time.Second
	// restShare makes the hub rest for so many times as long as a look took, where that is longer.
	restShare = 4
	// readTimeout bounds a statement.
	readTimeout = 1500 * time.Millisecond
)

// Messages tells of finished jobs until ctx ends: queue.Subscription, whose Run says when it
// calls which function.
type Messages interface {
	Run(ctx context.Context, finished func([]queue.Finished), listening func(bool))
}

// Hub tells watchers that something of their account has changed.
//
// It hears the messages of the workers. They may be lost: a worker is killed before it sends
// one, a connection breaks, Redis is away. So the hub also looks into Postgres, in one
// statement for all accounts that are watched. While none is, it asks Postgres nothing.
type Hub struct {
	messages Messages
	pool     *pgxpool.Pool
	log      *slog.Logger

	lookAtAccountsNow chan struct{} // signals that messages may have been lost (buffer of 1)

	mu        sync.Mutex // guards the fields below
	listening bool       // messages arrive
	accounts  map[int64]*account
}

// New makes a hub that reads the database behind pool. Run runs it.
func New(messages Messages, pool *pgxpool.Pool, log *slog.Logger) *Hub {
	return &Hub{
		messages: messages, pool: pool, log: log,
		lookAtAccountsNow: make(chan struct{}, 1), accounts: map[int64]*account{},
	}
}

// Run hears and looks until ctx ends. By then the API must have answered its last request.
func (h *Hub) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { h.messages.Run(ctx, h.heard, h.setListening) })
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
			h.log.Warn("could not look for finished jobs", "error", err)
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
		signal(h.lookAtAccountsNow)
	}
}

// heard signals the watchers of the accounts of finished jobs. A message can name any account:
// it makes a watcher look, and nothing else.
func (h *Hub) heard(jobs []queue.Finished) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, job := range jobs {
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
