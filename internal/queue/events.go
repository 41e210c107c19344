package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// lookEvery is the pause between two checks of which masters exist and whether they still send
// events.
const lookEvery = 2 * time.Second

// master is a Redis server that holds queues, and the subscription to its events.
type master struct {
	client       redis.UniversalClient
	subscription *redis.PubSub
	subscribed   bool  // it has accepted the subscription
	sends        bool  // it sends events
	forbids      bool  // the log says that it forbids them
	err          error // of the last subscribe
}

// masterEvent is what a master's subscription received.
type masterEvent struct {
	from  *master
	event any
}

// listener turns the events of all masters into wake-ups. The events of a key come only from the
// master that holds the key. So the listener subscribes to the same channels on every master: then
// a move of a key to another master of the cluster loses no event.
type listener struct {
	*waitingClient
	masters map[string]*master // by address
	events  chan masterEvent
	readers sync.WaitGroup
}

// listen turns Redis's events into wake-ups until ctx ends. go-redis subscribes again after
// a lost connection.
func (w *waitingClient) listen(ctx context.Context) {
	l := &listener{waitingClient: w, masters: map[string]*master{}, events: make(chan masterEvent)}
	ctx, cancel := context.WithCancel(ctx)
	defer l.readers.Wait()
	defer l.closeOthers(nil)
	defer cancel()
	l.look(ctx)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.look(ctx)
		case <-w.assignment.changed:
			for _, m := range l.masters {
				m.err = l.subscribe(ctx, m)
			}
			w.endOthers()
		case received := <-l.events:
			l.handle(ctx, received.from, received.event)
		}
	}
}

// look subscribes to the events of new masters, and again if the last attempt failed. It closes the
// subscriptions of former masters. If it can't read the list of masters, it keeps all.
func (l *listener) look(ctx context.Context) {
	current, err := mastersOf(ctx, l.UniversalClient)
	if err != nil {
		l.log.Debug("could not read the masters of the Redis cluster", "error", err)
		return
	}
	l.closeOthers(current)
	for address, client := range current {
		m := l.masters[address]
		switch {
		case m == nil:
			l.masters[address] = l.follow(ctx, client)
		case m.err != nil:
			m.err = l.subscribe(ctx, m)
		case m.subscribed:
			if l.enableEvents(ctx, m) { // it did not send them, so some are lost
				l.wakeOwn()
			}
		}
	}
	l.noteEvents()
}

// mastersOf returns the masters of a cluster, or the one server, by address.
func mastersOf(ctx context.Context, client redis.UniversalClient) (map[string]redis.UniversalClient, error) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		return map[string]redis.UniversalClient{"": client}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	masters := map[string]redis.UniversalClient{}
	var mu sync.Mutex
	err := cluster.ForEachMaster(ctx, func(_ context.Context, one *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		masters[one.Options().Addr] = one
		return nil
	})
	return masters, err
}

// follow subscribes to a master's events.
func (l *listener) follow(ctx context.Context, client redis.UniversalClient) *master {
	m := &master{client: client, subscription: client.Subscribe(ctx)} // to nothing yet
	m.err = l.subscribe(ctx, m)
	received := m.subscription.ChannelWithSubscriptions()
	l.readers.Go(func() {
		for event := range received { // until the subscription is closed
			if l.hearPush(event) {
				continue
			}
			select {
			case l.events <- masterEvent{m, event}:
			case <-ctx.Done():
				return
			}
		}
	})
	return m
}

// hearPush signals a push onto a list, and returns false for what the listener's loop must handle. It does
// not wait for that loop, which a call to a dead master of a cluster may delay by a second.
func (l *listener) hearPush(event any) bool {
	message, ok := event.(*redis.Message)
	if !ok || l.signals[message.Channel] == nil {
		return false
	}
	if strings.HasSuffix(message.Payload, "push") { // lpush: enqueued; rpush: notified, or given back
		l.signal(message.Channel)
	}
	return true
}

// closeOthers closes the subscriptions of the masters that are not among current.
func (l *listener) closeOthers(current map[string]redis.UniversalClient) {
	for address, m := range l.masters {
		if current[address] == nil {
			_ = m.subscription.Close() // an error changes nothing
			delete(l.masters, address)
		}
	}
}

// subscribe subscribes to the pending lists and notifications of the partitions that are
// assigned to this worker, and to the messages of the workers.
func (l *listener) subscribe(ctx context.Context, m *master) error {
	want, unwanted := []string{l.queues.workersKey()}, []string(nil)
	for channel, list := range l.lists {
		if l.assignment.isElsewhere(list) {
			unwanted = append(unwanted, channel)
		} else {
			want = append(want, channel)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := m.subscription.Subscribe(ctx, want...)
	if len(unwanted) > 0 { // Unsubscribe without a channel would end all
		err = errors.Join(err, m.subscription.Unsubscribe(ctx, unwanted...))
	}
	if err != nil {
		l.log.Debug("could not subscribe to Redis's events", "error", err)
	}
	return err
}

// handle handles what a subscription received. A new subscription has missed what happened
// before it, or while its connection was lost: tasks may be pending, and workers may have
// started or stopped. So handle then wakes the partitions and reads the workers.
func (l *listener) handle(ctx context.Context, m *master, event any) {
	workers := l.queues.workersKey()
	switch event := event.(type) {
	case *redis.Subscription:
		switch {
		case event.Kind != "subscribe":
		case event.Channel == workers:
			m.subscribed = true
			l.enableEvents(ctx, m)
			l.noteEvents()
			l.wakeOwn()
			l.assignment.refreshSoon()
		default:
			l.signal(event.Channel)
		}
	case *redis.Message: // hearPush has heard those of lists
		if event.Channel == workers {
			l.assignment.refreshSoon()
		}
	}
}

// noteEvents updates whether every master sends events. While one does not, Asynq polls the pending
// lists.
func (l *listener) noteEvents() {
	all := len(l.masters) > 0
	for _, m := range l.masters {
		all = all && m.sends
	}
	l.waitingClient.events.Store(all)
}

// channelOf is the channel of a key's events.
func channelOf(client redis.UniversalClient, key string) string {
	database := 0 // a cluster has no other
	if one, ok := client.(*redis.Client); ok {
		database = one.Options().DB
	}
	return fmt.Sprintf("__keyspace@%d__:%s", database, key)
}

// enableEvents makes a master send the events of lists, in addition to those that other programs
// have asked for. If it forbids that, Asynq polls the pending lists. enableEvents returns whether the
// master did not send them before.
func (l *listener) enableEvents(ctx context.Context, m *master) (changed bool) {
	changed, err := mergeFlags(ctx, m.client)
	m.sends = err == nil
	switch forbids := IsAnswer(err) && !isRefusal(err); { // any other error is an outage, which has lines of its own
	case forbids && !m.forbids:
		l.log.Warn("could not enable Redis's keyspace events; polling", "error", err)
		m.forbids = true
	case err == nil && m.forbids:
		l.log.Info("Redis sends keyspace events")
		m.forbids = false
	}
	return changed
}

const eventFlags = "notify-keyspace-events"

// mergeFlags returns whether it has changed the flags.
func mergeFlags(ctx context.Context, client redis.UniversalClient) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	have, err := client.ConfigGet(ctx, eventFlags).Result()
	if err != nil {
		return false, err
	}
	flags := have[eventFlags]
	if want := mergedFlags(flags); want != flags {
		err = client.ConfigSet(ctx, eventFlags, want).Err()
		return err == nil, err
	}
	return false, nil
}

// mergedFlags adds the flags of wake-ups: K, keyspace events, of l, lists (A includes l).
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
