package limit_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/limit"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The cost of a request's decision, with settlements in the background, beside a question to Redis for
// each request.
func BenchmarkTake(b *testing.B) {
	opt, err := redis.ParseURL(testenv.Redis(b))
	if err != nil {
		b.Fatal(err)
	}
	client := redis.NewClient(opt)
	defer client.Close() //nolint:errcheck // nothing is pending on it
	l := limit.New(limit.Config{
		Quota: limit.Quota{Most: 100_000_000, Per: time.Second}, Redis: client, Prefix: "bench", Name: "requests", Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	b.Run("Local", func(b *testing.B) {
		for b.Loop() {
			l.Take("a")
		}
	})
	b.Run("Shared", func(b *testing.B) {
		for b.Loop() {
			l.TakeShared(ctx, "b")
		}
	})
	cancel()
	if err := <-ended; err != nil {
		b.Error(err)
	}
}
