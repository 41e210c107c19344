package queue

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// probeLife is how long the key of a probe stays in Redis.
const probeLife = time.Minute

// CheckWrites returns Redis's error where it takes no writes: it is away, full, a replica, or can't
// save. The write is the key PREFIX:probe, which the processes of an installation share.
func CheckWrites(ctx context.Context, client redis.UniversalClient, prefix string) error {
	if err := client.Set(ctx, prefix+":probe", 1, probeLife).Err(); err != nil {
		return fmt.Errorf("write to Redis: %w", err)
	}
	return nil
}

// knownFor is how long what Redis said about the queues counts as known. It is several of the pauses
// after which the process asks again.
const knownFor = 10 * time.Second

// lastAnswer is when Redis answered last.
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
