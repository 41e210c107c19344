package config

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
)

const (
	minSecret     = 32 // bytes: the key size of HS256 (RFC 7518, section 3.2)
	minToken      = 16 // characters
	maxPartitions = 1024
	maxDelay      = time.Hour
)

var (
	databaseURL = variable{
		name:    "DATABASE_URL",
		want:    "a postgres:// URL, any password percent-encoded",
		example: "postgres://passbook@localhost:5432/passbook",
	}
	readDatabaseURL = variable{
		name:    "READ_DATABASE_URL",
		want:    "a postgres:// URL, any password percent-encoded, or nothing where there is no replica",
		example: "postgres://passbook@replica:5432/passbook",
	}
	redisURL = variable{
		name:    "REDIS_URL",
		want:    "a redis://, redis+cluster:// or redis+sentinel:// URL, or rediss… for TLS, any password percent-encoded",
		example: "redis://localhost:6379/0",
	}
	jwtKeys = variable{
		name:    "JWT_KEYS",
		want:    fmt.Sprintf("kid:base64,… with at least %d random bytes each", minSecret),
		example: "2026-01:BASE64, the latter from `openssl rand -base64 32`",
	}
	httpAddr = variable{
		name:     "HTTP_ADDR",
		standard: "127.0.0.1:8080",
		want:     "an address to listen on",
		example:  "127.0.0.1:8080",
	}
	opsToken = variable{
		name:    "OPS_TOKEN",
		want:    fmt.Sprintf("at least %d visible ASCII characters", minToken),
		example: "from `openssl rand -hex 32`",
	}
	opsReadToken = variable{
		name:    "OPS_READ_TOKEN",
		want:    fmt.Sprintf("at least %d visible ASCII characters, other than those of OPS_TOKEN", minToken),
		example: "from `openssl rand -hex 32`",
	}
	opsQueuesWrite = variable{
		name:     "OPS_QUEUES_WRITE",
		standard: "false",
		want:     "true or false",
		example:  "false",
	}
	opsHosts = variable{
		name:    "OPS_HOSTS",
		want:    "host names without ports, separated by commas",
		example: "worker,worker.internal.example",
	}
	queuePartitions = variable{
		name:     "QUEUE_PARTITIONS",
		standard: "16",
		want:     fmt.Sprintf("a number from 1 to %d, the same on every process", maxPartitions),
		example:  "16",
	}
	queuePrefix = variable{
		name:     "QUEUE_PREFIX",
		standard: "passbook",
		want:     "up to 32 lower-case letters, digits, dots, dashes and underscores, the first a letter or a digit, the same on every process",
		example:  "passbook",
	}
	maxQueued = variable{
		name:     "MAX_QUEUED_PER_ACCOUNT",
		standard: "50000",
		want:     "a number of at least 1",
		example:  "50000",
	}
	shutdownDelay = variable{
		name:     "SHUTDOWN_DELAY",
		standard: "0s",
		want:     fmt.Sprintf("a duration from 0s to %v", maxDelay),
		example:  "5s",
	}
	logLevel = variable{
		name:     "LOG_LEVEL",
		standard: "info",
		want:     "debug, info, warn or error",
		example:  "info",
	}
	logFormat = variable{
		name:     "LOG_FORMAT",
		standard: "json",
		want:     "json or text",
		example:  "json",
	}
)

func opsAddrVariable(standard string) variable {
	return variable{name: "OPS_ADDR", standard: standard, want: "an address to listen on", example: standard}
}

func parseDatabaseURL(text string) (string, error) {
	_, err := postgres.ParseURL(text)
	return text, err
}

func parseRedisURL(text string) (string, error) {
	return text, queue.CheckURL(text)
}

// parseKeys names a faulty key by its number: what is in the place of its kid may be a secret.
func parseKeys(text string) ([]Key, error) {
	var keys []Key
	var faults []string
	numbers := map[string]int{} // by kid
	for i, part := range strings.Split(text, ",") {
		key, err := parseKey(part)
		if err != nil {
			faults = append(faults, fmt.Sprintf("key %d %v", i+1, err))
			continue
		}
		if first, taken := numbers[key.ID]; taken {
			faults = append(faults, fmt.Sprintf("key %d has the kid of key %d", i+1, first))
			continue
		}
		numbers[key.ID] = i + 1
		keys = append(keys, key)
	}
	if len(faults) > 0 {
		return nil, errors.New(strings.Join(faults, ", "))
	}
	return keys, nil
}

func parseKey(text string) (Key, error) {
	kid, encoded, found := strings.Cut(text, ":")
	if !found {
		return Key{}, errors.New("is not kid:base64")
	}
	if kid == "" {
		return Key{}, errors.New("has no kid")
	}
	secret, ok := decodeBase64(encoded)
	if !ok {
		return Key{}, errors.New("is not base64")
	}
	if len(secret) < minSecret {
		return Key{}, fmt.Errorf("has %d bytes, fewer than %d", len(secret), minSecret)
	}
	if bytes.Count(secret, secret[:1]) == len(secret) { // a placeholder
		return Key{}, errors.New("is one byte repeated")
	}
	return Key{ID: kid, Secret: secret}, nil
}

// decodeBase64 accepts both alphabets of RFC 4648, padded or not.
func decodeBase64(text string) ([]byte, bool) {
	encodings := []*base64.Encoding{
		base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding,
	}
	for _, encoding := range encodings {
		if decoded, err := encoding.DecodeString(text); err == nil {
			return decoded, true
		}
	}
	return nil, false
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9._-]*$`)

// parseAddr checks an address to listen on: an empty host means every interface, port 0 any free
// port.
func parseAddr(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port", text)
	}
	if _, err := netip.ParseAddr(host); err != nil && !hostForm.MatchString(host) {
		return "", fmt.Errorf("%q has no valid host", text)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q has no port from 0 to 65535", text)
	}
	return text, nil
}

// isLoopback reports whether only this machine reaches addr. Any name but localhost (RFC 6761,
// section 6.3) may resolve to another address.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return strings.EqualFold(host, "localhost")
	}
	return ip.Unmap().IsLoopback()
}

var tokenForm = regexp.MustCompile(`^[!-~]*$`)

func parseToken(text string) (string, error) {
	if len(text) < minToken {
		return "", fmt.Errorf("has fewer than %d characters", minToken)
	}
	if !tokenForm.MatchString(text) {
		return "", errors.New("has characters that a header can't carry")
	}
	return text, nil
}

func parseSwitch(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither", text)
}

func parseHosts(text string) ([]string, error) {
	hosts := strings.Split(text, ",")
	for _, host := range hosts {
		if host == "" || !hostForm.MatchString(host) {
			return nil, fmt.Errorf("%q is not a host name", host)
		}
	}
	return hosts, nil
}

func parsePartitions(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxPartitions {
		return 0, fmt.Errorf("%q is out of range or no number", text)
	}
	return n, nil
}

var prefixForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,31}$`)

func parsePrefix(text string) (string, error) {
	if !prefixForm.MatchString(text) {
		return "", fmt.Errorf("%q has another form", text)
	}
	return text, nil
}

func parseMaxQueued(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is out of range or no number", text)
	}
	return n, nil
}

func parseDelay(text string) (time.Duration, error) {
	delay, err := time.ParseDuration(text)
	if err != nil || delay < 0 || delay > maxDelay {
		return 0, fmt.Errorf("%q is out of range or no duration", text)
	}
	return delay, nil
}

func parseLevel(text string) (slog.Level, error) {
	switch text {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is not a level", text)
}

func parseFormat(text string) (json bool, err error) {
	switch text {
	case "json":
		return true, nil
	case "text":
		return false, nil
	}
	return false, fmt.Errorf("%q is not a format", text)
}
