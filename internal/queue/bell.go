package queue

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long an empty queue is left alone, unless its bell rings.
const (
	withBell    = time.Second
	withoutBell = 100 * time.Millisecond // Redis forbids CONFIG SET, or is not there
)

// checkFlags is how often the bell makes sure that Redis still sends events.
const checkFlags = 10 * time.Second

// bell is a Redis client under which Asynq need not poll: a dequeue that finds
// its queue empty is held until Redis says that something was pushed onto it,
// or a second passes. Asynq itself asks again and again.
//
// It leans on how Asynq 0.26 dequeues: one EVALSHA a queue with four keys, the
// first the pending list, the second the pause. TestBellKnowsAsynq fails where
// that changes; the worst that happens then is polling.
type bell struct {
	redis.UniversalClient
	log      *slog.Logger
	pushed   map[string]chan struct{} // by pending list; each holds one ring. Never changed
	withBell time.Duration            // how long an empty queue is held; tests wait longer
	patience atomic.Int64             // the same, a time.Duration, as things stand with the bell
	closed   chan struct{}
	// isOther tells the lists that another worker is to be the first at.
	isOther func(pending string) bool
	holdOff time.Duration // how long those are left to it; tests wait longer
}

func newBell(client redis.UniversalClient, partitions int, isOther func(pending string) bool, log *slog.Logger) *bell {
	b := &bell{
		UniversalClient: client,
		log:             log,
		pushed:          make(map[string]chan struct{}, partitions),
		withBell:        withBell,
		closed:          make(chan struct{}),
		isOther:         isOther,
		holdOff:         holdOff,
	}
	for partition := range partitions {
		b.pushed[line(partition)] = make(chan struct{}, 1)
	}
	b.patience.Store(int64(withoutBell))
	return b
}

// EvalSha runs the script; a dequeue that found nothing it runs once more when
// the bell has rung. A ring that came since the last dequeue is kept, so none
// is missed in between.
func (b *bell) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := b.UniversalClient.EvalSha(ctx, sha, keys, args...)
	if !isDequeue(keys) || cmd.Err() == nil || redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		return cmd
	}
	if !errors.Is(cmd.Err(), redis.Nil) {
		// Asynq asks again at once after an error. A Redis that is down or
		// starting should not be stormed.
		b.wait(nil, withoutBell)
		return cmd
	}
	if rang := b.wait(b.pushed[keys[0]], time.Duration(b.patience.Load())); !rang {
		return cmd
	}
	if b.isOther(keys[0]) {
		b.wait(nil, b.holdOff)
	}
	select {
	case <-b.closed: // what rang stays in line
		return cmd
	default:
	}
	return b.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

func isDequeue(keys []string) bool {
	return len(keys) == 4 && strings.HasSuffix(keys[0], ":pending") && strings.HasSuffix(keys[1], ":paused")
}

func (b *bell) wait(pushed <-chan struct{}, patience time.Duration) (rang bool) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-pushed:
		return true
	case <-timer.C:
	case <-b.closed:
	}
	return false
}

// close lets every held dequeue go.
func (b *bell) close() {
	close(b.closed)
}

// listen rings for what Redis says was pushed, until ctx ends. go-redis
// subscribes again after a lost connection.
func (b *bell) listen(ctx context.Context) {
	subscription := b.PSubscribe(ctx, "__keyspace@*__:asynq:{tx:*}:pending")
	defer subscription.Close() //nolint:errcheck // nothing depends on it any more
	events := subscription.ChannelWithSubscriptions()
	check := time.NewTicker(checkFlags)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			b.askForEvents(ctx)
		case event, open := <-events:
			if !open {
				return
			}
			switch event := event.(type) {
			case *redis.Subscription: // the first, or one after a lost connection
				b.askForEvents(ctx)
				b.ringAll()
			case *redis.Message:
				_, pending, _ := strings.Cut(event.Channel, "__:")
				if strings.HasSuffix(event.Payload, "push") { // l when written, r when given back
					b.ring(b.pushed[pending])
				}
			}
		}
	}
}

func (b *bell) ring(pushed chan<- struct{}) {
	select {
	case pushed <- struct{}{}:
	default: // it rings already, or is not a queue of ours
	}
}

func (b *bell) ringAll() {
	for _, pushed := range b.pushed {
		b.ring(pushed)
	}
}

// askForEvents makes Redis send the events of lists, beside whatever it sends
// to others. Where it may not, queues are polled.
func (b *bell) askForEvents(ctx context.Context) {
	patience := b.withBell
	if err := b.mergeFlags(ctx); err != nil {
		patience = withoutBell
		b.log.Warn("Redis sends no keyspace events; polling", "error", err)
	}
	b.patience.Store(int64(patience))
}

const eventFlags = "notify-keyspace-events"

func (b *bell) mergeFlags(ctx context.Context) error {
	have, err := b.ConfigGet(ctx, eventFlags).Result()
	if err != nil {
		return err
	}
	flags := have[eventFlags]
	if want := mergedFlags(flags); want != flags {
		return b.ConfigSet(ctx, eventFlags, want).Err()
	}
	return nil
}

// mergedFlags adds to the flags what the bell needs: K, keyspace events, of l,
// lists (A stands for l too).
// https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/
func mergedFlags(flags string) string {
	if !strings.Contains(flags, "K") {
		flags += "K"
	}
	if !strings.ContainsAny(flags, "lA") {
		flags += "l"
	}
	return flags
}
