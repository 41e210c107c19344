package queue

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A Redis without LPOP's count is refused, with its version. A server that does not report it is not refused.
func TestCheckVersion(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"5.0.14": true, "6.0.16": true, "6.1.0": true, "6.2.0": false, "6.2.21": false, "6.10.0": false, "7.0.15": false, "10.0.0": false,
		"": false, "7": false, "x.y": false, "5.x": false,
	} {
		err := checkVersion("# Server\r\nredis_version:" + version + "\r\nredis_git_sha1:00000000\r\n")
		if errors.Is(err, ErrOldRedis) != old || err != nil && !strings.Contains(err.Error(), version) {
			t.Errorf("version %q: %v", version, err)
		}
	}
	if err := checkVersion("# Server\r\n"); err != nil {
		t.Error(err)
	}
}

// The server that the tests run on is new enough, and one that is away is not refused.
func TestCheckVersion_Servers(t *testing.T) {
	t.Parallel()
	for _, url := range []string{testenv.Redis(t), "redis://127.0.0.1:1"} {
		client, err := Connect(url)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckVersion(t.Context(), client, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		if err := client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
			t.Error(err)
		}
	}
}
