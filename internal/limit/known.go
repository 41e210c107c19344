package limit

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// knownFor is how long Known remembers a key.
const knownFor = 30 * 24 * time.Hour

// Known remembers keys in Redis, for knownFor. Redis may lose them: nothing may rely on it that a key
// is remembered. A nil Known remembers nothing.
type Known struct {
	redis  redis.UniversalClient
	prefix string
}

// NewKnown remembers keys under names that begin with the prefix and the name.
func NewKnown(client redis.UniversalClient, prefix, name string) *Known {
	return &Known{redis: client, prefix: prefix + ":" + name}
}

// Add remembers the key, unless Redis does not answer in shareTimeout.
func (k *Known) Add(ctx context.Context, key string) {
	if k == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	_ = k.redis.Set(ctx, k.name(key), 1, knownFor).Err() // it may be forgotten
}

// MayHave returns whether the key is remembered. It also returns true if Redis does not answer in
// shareTimeout, because the key may be.
func (k *Known) MayHave(ctx context.Context, key string) bool {
	if k == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	n, err := k.redis.Exists(ctx, k.name(key)).Result()
	return err != nil || n > 0
}

func (k *Known) name(key string) string {
	return fmt.Sprintf("%s:%x", k.prefix, key)
}
