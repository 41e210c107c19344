package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// ownerEvery is how often a process checks which installation owns the queues. For about that
// long after FLUSHALL two installations may share them; each gives the other's tasks back.
const ownerEvery = 2 * time.Second

// The metric of both processes.
const (
	OwnerMetric = "passbook_queues_of_another_installation"
	OwnerHelp   = "1 while another installation uses the queues, under the same prefix on the same Redis, else 0; absent while Redis can't be read."
)

// ErrOtherInstallation is returned where another installation owns the queues. The sweep
// then applies the accepted jobs without them.
var ErrOtherInstallation = errors.New("another installation uses the queues")

// Owner knows which installation owns the queues under a prefix: the one that came first.
// Redis keeps the id of its database. The key has no time to live: an installation that is
// paused would lose the queues.
type Owner struct {
	client  redis.UniversalClient
	key, id string
	log     *slog.Logger
	other   atomic.Pointer[string] // id of the other installation; nil while there is none
	answer  lastAnswer
}

// NewOwner makes an Owner for the installation called id. Call Check before the queues are
// used, and keep Run running.
func NewOwner(client redis.UniversalClient, prefix string, id uuid.UUID, log *slog.Logger) *Owner {
	return &Owner{client: client, key: prefix + ":installation", id: id.String(), log: log}
}

// Err returns ErrOtherInstallation while another installation owns the queues. A nil Owner
// allows everything.
func (o *Owner) Err() error {
	if o == nil {
		return nil
	}
	if other := o.other.Load(); other != nil {
		return fmt.Errorf("%w: %s, this one is %s", ErrOtherInstallation, *other, o.id)
	}
	return nil
}

// IsOther returns whether another installation owns the queues, and whether that is known: Redis has
// said so lately.
func (o *Owner) IsOther() (isOther, isKnown bool) { return o.Err() != nil, o.answer.isRecent() }

// Run checks every ownerEvery until ctx ends. So a conflict that an operator has ended needs
// no restart, and the id is soon back after FLUSHALL.
func (o *Owner) Run(ctx context.Context) error {
	tick := time.NewTicker(ownerEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.Check(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// Check takes the queues if no installation owns them, and logs when the owner changes. If
// Redis does not answer, nothing changes: an outage is no conflict.
func (o *Owner) Check(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var owner *redis.StringCmd
	_, err := o.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SetNX(ctx, o.key, o.id, 0) // a Redis that is full or read-only refuses this, and answers the next
		owner = p.Get(ctx, o.key)
		return nil
	})
	if owner.Err() == nil {
		o.answer.note()
	}
	switch was := o.other.Load(); {
	case owner.Err() != nil:
		o.log.Debug("could not check which installation owns the queues", "error", errors.Join(err, owner.Err()))
	case owner.Val() == o.id:
		if o.other.Store(nil); was != nil {
			o.log.Info("this installation owns the queues again", "key", o.key)
		}
	case was == nil || *was != owner.Val():
		other := owner.Val()
		o.other.Store(&other)
		o.log.Error("another installation owns the queues: set another QUEUE_PREFIX or REDIS_URL,"+
			" or delete the key if that installation is gone; until then the sweep applies jobs without Redis, more slowly",
			"key", o.key, "installation", o.id, "other", other)
	}
}
