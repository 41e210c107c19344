package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// watchEvery is the pause between two looks of watch.
const watchEvery = 2 * time.Second

// ErrPaused is returned while an operator has paused partitions.
var ErrPaused = errors.New("an operator has paused partitions")

// watch keeps every partition's queue in Asynq's list of queues, and notices pauses.
//
// Asynq lists a queue only after its first task, and removes it when an operator deletes the empty
// queue. Without watch the dashboard and the metrics would not show such partitions. To list a queue
// twice, or one without a key, does no harm: Asynq's own client does both.
type watch struct {
	client redis.UniversalClient
	queues Queues
	log    *slog.Logger
	count  func(paused int)         // is given how many are paused; nil for none
	paused atomic.Pointer[[]string] // the queues; nil: none, or not known
}

// err returns ErrPaused while partitions are paused.
func (w *watch) err() error {
	if paused := w.paused.Load(); paused != nil {
		return fmt.Errorf("%w: %s", ErrPaused, strings.Join(*paused, ", "))
	}
	return nil
}

// run looks every watchEvery until ctx ends.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look lists the queues, counts the paused ones, and logs which pauses began or ended. If Redis does not
// answer, or the queues are another installation's, no pause is known.
func (w *watch) look(ctx context.Context) {
	paused, err := w.read(ctx)
	if err != nil {
		w.log.Debug("could not look for pauses", "error", err)
	} else if w.count != nil {
		w.count(len(paused))
	}
	var before []string
	if known := w.paused.Load(); known != nil {
		before = *known
	}
	if len(paused) == 0 {
		w.paused.Store(nil)
	} else {
		w.paused.Store(&paused)
	}
	switch {
	case err != nil || slices.Equal(paused, before):
	case len(paused) > 0:
		w.log.Warn("partitions are paused: their jobs wait until an operator resumes them", "queues", paused)
	default:
		w.log.Info("no partition is paused any more", "queues", before)
	}
}

func (w *watch) read(ctx context.Context) (paused []string, err error) {
	if err := w.queues.Owner.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	names, pauses := make([]any, w.queues.Partitions), make([]*redis.IntCmd, w.queues.Partitions)
	_, err = w.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition := range names {
			name := w.queues.Name(partition)
			names[partition], pauses[partition] = name, p.Exists(ctx, keysOf(name)+"paused")
		}
		p.SAdd(ctx, allQueues, names...) // a Redis that is full or read-only refuses this, and answers the others
		return nil
	})
	if err != nil && !IsAnswer(err) {
		return nil, err
	}
	for partition, pause := range pauses {
		if pause.Val() > 0 {
			paused = append(paused, w.queues.Name(partition))
		}
	}
	return paused, nil
}
