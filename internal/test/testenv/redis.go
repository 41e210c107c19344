package testenv

import (
	"context"
	"net/url"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/local"
)

// Redis is the URL of an empty server of the test's own, stopped when the test
// ends.
func Redis(t testing.TB) string {
	t.Helper()
	return RedisServer(t).URL()
}

// RedisServer is the same server with its controls: to be killed, restarted,
// flushed. It keeps nothing over a restart.
func RedisServer(t testing.TB) *local.Redis {
	t.Helper()
	server, err := local.StartRedis(t.Context(), local.RedisConfig{})
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	removeAfter(t, server.Remove)
	return server
}

// mustDo gives a command to one server.
func mustDo(t testing.TB, server *local.Redis, command ...any) any {
	t.Helper()
	answer, err := tryDo(t, server, command...)
	if err != nil {
		t.Fatalf("testenv: %v: %v", command[0], err)
	}
	return answer
}

// tryDo gives a command to one server, which may refuse it or be away.
func tryDo(t testing.TB, server *local.Redis, command ...any) (any, error) {
	t.Helper()
	opt, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	opt.DB, opt.MaxRetries = 0, -1
	client := redis.NewClient(opt)
	defer client.Close() //nolint:errcheck // nothing is pending on it
	return client.Do(context.WithoutCancel(t.Context()), command...).Result()
}

func hostPort(server *local.Redis) (host, port string) {
	u, _ := url.Parse(server.URL()) // a URL that this project writes
	return u.Hostname(), u.Port()
}
