package testenv

import (
	"testing"

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
