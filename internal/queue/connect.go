package queue

import (
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Connect makes a client for redis:// and rediss:// URLs. It does not wait for
// the server: Redis may come and go.
func Connect(url string) (redis.UniversalClient, error) {
	opt, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("parse Redis URL: %w", err)
	}
	const dialTimeout, callTimeout = time.Second, 3 * time.Second
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = dialTimeout, callTimeout, callTimeout
	opt.ContextTimeoutEnabled = true
	return redis.NewClient(opt), nil
}
