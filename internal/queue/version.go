package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// The oldest Redis whose LPOP takes a count. A task takes its notifications with it.
const oldestMajor, oldestMinor = 6, 2

// ErrOldRedis is returned for a Redis that lacks what the queues need.
var ErrOldRedis = errors.New("this Redis is too old")

// CheckVersion returns ErrOldRedis for a server older than 6.2. It returns nil if the server does not
// answer or does not report its version: a process can start during an outage.
func CheckVersion(ctx context.Context, client redis.UniversalClient, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := client.Info(ctx, "server").Result()
	if err != nil {
		log.Debug("could not check the version of Redis", "error", err)
		return nil
	}
	return checkVersion(info)
}

// checkVersion reads the answer of INFO. Valkey reports there the version of Redis that it is
// compatible with.
func checkVersion(info string) error {
	_, version, _ := strings.Cut(info, "redis_version:")
	version, _, _ = strings.Cut(version, "\n")
	parts := strings.Split(strings.TrimSpace(version), ".")
	major, err := strconv.Atoi(parts[0])
	if err != nil || len(parts) == 1 {
		return nil //nolint:nilerr // the server does not report it
	}
	minor, err := strconv.Atoi(parts[1])
	if err == nil && (major < oldestMajor || major == oldestMajor && minor < oldestMinor) {
		return fmt.Errorf("%w: it is version %s, and must be %d.%d or newer", ErrOldRedis, strings.Join(parts, "."), oldestMajor, oldestMinor)
	}
	return nil
}
