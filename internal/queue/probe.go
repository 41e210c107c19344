package queue

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// probeLife is how long the keys of a probe stay in Redis.
const probeLife = time.Minute

// CheckWrites returns Redis's error if Redis takes no writes: it is away, full, a replica, or can't
// save. It writes a key for each partition, PREFIX:probe:{QUEUE}, and so to each master of a cluster
// that holds partitions. The processes of an installation share the keys.
func CheckWrites(ctx context.Context, client redis.UniversalClient, queues Queues) error {
	_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for partition := range queues.Partitions {
			p.Set(ctx, keyOf(queues.Name(partition), "probe"), 1, probeLife)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write to Redis: %w", err)
	}
	return nil
}

// knownFor is how long an answer of Redis about the queues counts. It is several times the pause after
// which the process asks again.
const knownFor = 10 * time.Second

// lastAnswer is the time of Redis's last answer.
type lastAnswer struct{ at atomic.Pointer[time.Time] }

func (l *lastAnswer) note() {
	now := time.Now()
	l.at.Store(&now)
}

// isRecent is false before the first answer, and knownFor after the last one.
func (l *lastAnswer) isRecent() bool {
	at := l.at.Load()
	return at != nil && time.Since(*at) < knownFor
}
