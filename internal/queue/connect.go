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
	// connections bounds the connections of one process, unless the URL sets pool_size;
	// pipelines have pipelineConnections more. All partitions share them, because calls are
	// short and a Redis of many workers bounds its clients.
	connections         = 16
	pipelineConnections = 4
)

// Connect makes a client for redis:// and rediss:// URLs. It does not wait for the server:
// Redis may be down when a process starts.
func Connect(url string) (redis.UniversalClient, error) {
	opt, err := redis.ParseURL(url)
	if err != nil { // not wrapped: it quotes the URL with its password
		return nil, errors.New("the Redis URL can't be read: its form, its database number or a parameter")
	}
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = dialTimeout, callTimeout, callTimeout
	opt.ContextTimeoutEnabled = true
	opt.PoolSize = cmp.Or(opt.PoolSize, connections)
	opt.PipelinePoolSize = cmp.Or(opt.PipelinePoolSize, pipelineConnections)
	return redis.NewClient(opt), nil
}

// LogTo sends go-redis's messages to log, for the whole process. Call it before the first
// Connect.
func LogTo(log *slog.Logger) {
	redis.SetLogger(redisLogger{log})
}

// redisLogger logs the messages of go-redis. It sends one for each failed dial.
type redisLogger struct{ log *slog.Logger }

// Printf logs a message.
func (l redisLogger) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, args...))
}
