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

// ownerEvery is how often it is checked whose the queues are: for about so long after
// FLUSHALL two installations may share them, and give each other's tasks back.
const ownerEvery = 2 * time.Second

// The metric of both processes.
const (
	OwnerMetric = "passbook_queues_of_another_installation"
	OwnerHelp   = "1 while another installation uses the queues, under the same prefix on the same Redis; else 0."
)

// ErrOtherInstallation is returned in place of using queues that another installation
// uses. The sweep then applies what is accepted by itself.
var ErrOtherInstallation = errors.New("another installation uses the queues")

// Owner knows whose the queues under a prefix are: those of the installation that came
// first. The id of its database is kept in Redis. It has no time to live: a paused
// installation would lose it.
type Owner struct {
	client  redis.UniversalClient
	key, id string
	log     *slog.Logger
	other   atomic.Pointer[string] // id of the other installation; nil while there is none
}

// NewOwner makes one for the installation called id. Check must be called before the
// queues are used, and Run must run.
func NewOwner(client redis.UniversalClient, prefix string, id uuid.UUID, log *slog.Logger) *Owner {
	return &Owner{client: client, key: prefix + ":installation", id: id.String(), log: log}
}

// Err returns ErrOtherInstallation while the queues are another installation's. A nil
// Owner allows everything.
func (o *Owner) Err() error {
	if o == nil {
		return nil
	}
	if other := o.other.Load(); other != nil {
		return fmt.Errorf("%w: %s, this one is %s", ErrOtherInstallation, *other, o.id)
	}
	return nil
}

// Run checks again and again until ctx ends, so that a mix-up that is over needs no
// restart, and FLUSHALL takes the id for a moment only.
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

// Check takes the queues where no installation has them, and logs when their owner
// changes. Where Redis does not say whose they are, nothing changes: an outage is no mix-up.
func (o *Owner) Check(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	var owner *redis.StringCmd
	_, err := o.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SetNX(ctx, o.key, o.id, 0) // a Redis that is full or read-only refuses it, and answers the next
		owner = p.Get(ctx, o.key)
		return nil
	})
	switch was := o.other.Load(); {
	case owner.Err() != nil:
		o.log.Debug("can't check whose the queues are", "error", errors.Join(err, owner.Err()))
	case owner.Val() == o.id:
		if o.other.Store(nil); was != nil {
			o.log.Info("the queues are this installation's again", "key", o.key)
		}
	case was == nil || *was != owner.Val():
		other := owner.Val()
		o.other.Store(&other)
		o.log.Error("another installation uses the queues: set another QUEUE_PREFIX or REDIS_URL,"+
			" or delete the key if that installation is gone; until then jobs are applied without Redis, more slowly",
			"key", o.key, "installation", o.id, "other", other)
	}
}
