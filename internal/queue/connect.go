package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	dialTimeout = time.Second
	callTimeout = 3 * time.Second
	// connections are those of one process, unless the URL says pool_size, and
	// pipelineConnections more for pipelines. Calls are short, so that all partitions
	// share them: a server with many workers has a bound on its clients.
	connections         = 16
	pipelineConnections = 4
)

// Connect makes a client for redis:// and rediss:// URLs. It does not wait for
// the server: Redis may come and go.
func Connect(url string) (redis.UniversalClient, error) {
	opt, err := redis.ParseURL(url)
	if err != nil { // which quotes the URL, and the password in it
		return nil, errors.New("the Redis URL can't be read: its form, its database number or a parameter")
	}
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = dialTimeout, callTimeout, callTimeout
	opt.ContextTimeoutEnabled = true
	opt.PoolSize = cmp.Or(opt.PoolSize, connections)
	opt.PipelinePoolSize = cmp.Or(opt.PipelinePoolSize, pipelineConnections)
	return redis.NewClient(opt), nil
}

// LogTo sends what go-redis has to say to log, for the whole process. Call it
// before the first Connect.
func LogTo(log *slog.Logger) {
	redis.SetLogger(redisLogger{log})
}

// redisLogger takes the messages of go-redis, one for each failed dial.
type redisLogger struct{ log *slog.Logger }

// Printf logs a message.
func (l redisLogger) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, args...))
}
