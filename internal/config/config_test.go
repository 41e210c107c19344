package config_test

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/config"
)

// Secrets that no fault may repeat.
const (
	password = "hunter2hunter2"
	bareKey  = "c2VjcmV0c2VjcmV0"
	token    = "shorttoken"
)

var key = bytes.Repeat([]byte{0xfb, 0xff}, 16) // "+/v/" in base64, "-_v_" in its URL form

func from(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// with is a sound environment, changed by pairs of name and value.
func with(pairs ...string) func(string) string {
	vars := map[string]string{
		"DATABASE_URL": "postgres://passbook:" + password + "@db:5432/passbook",
		"REDIS_URL":    "redis://:" + password + "@cache:6379/0",
		"JWT_KEYS":     "k1:" + base64.StdEncoding.EncodeToString(key),
	}
	for pair := range slices.Chunk(pairs, 2) {
		vars[pair[0]] = pair[1]
	}
	return from(vars)
}

func TestLoadAPI(t *testing.T) {
	t.Run("Defaults", func(t *testing.T) {
		got, err := config.LoadAPI(with())
		if err != nil {
			t.Fatal(err)
		}
		want := config.API{
			DatabaseURL:         "postgres://passbook:" + password + "@db:5432/passbook",
			RedisURL:            "redis://:" + password + "@cache:6379/0",
			JWTKeys:             []config.Key{{ID: "k1", Secret: key}},
			HTTPAddr:            "127.0.0.1:8080",
			OpsAddr:             "127.0.0.1:9090",
			QueuePrefix:         "passbook",
			Partitions:          16,
			MaxQueuedPerAccount: 50000,
			MaxConnections:      got.MaxConnections, // by the limit of open files

			MaxConnectionsPerAddress: max(got.MaxConnections/4, 1),

			Log: config.Log{Level: slog.LevelInfo, JSON: true},
		}
		if !reflect.DeepEqual(got, want) || got.MaxConnections < 1 || got.MaxConnections > 4096 {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	})
	t.Run("EverythingSet", func(t *testing.T) {
		got, err := config.LoadAPI(with(
			"HTTP_ADDR", ":80", "OPS_ADDR", "0.0.0.0:0", "OPS_TOKEN", "0123456789abcdef", "OPS_HOSTS", "a,b",
			"QUEUE_PREFIX", "a-b_c.9", "QUEUE_PARTITIONS", "1024", "MAX_QUEUED_PER_ACCOUNT", "1", "SHUTDOWN_DELAY", "1m30s",
			"MAX_CONNECTIONS", "10", "MAX_CONNECTIONS_PER_ADDRESS", "0",
			"LOG_LEVEL", "debug", "LOG_FORMAT", "text", "READ_DATABASE_URL", "postgres://replica/passbook",
			"JWT_KEYS", "new:"+base64.RawURLEncoding.EncodeToString(key)+",old:"+base64.RawStdEncoding.EncodeToString(key),
		))
		if err != nil {
			t.Fatal(err)
		}
		want := config.API{
			DatabaseURL:         got.DatabaseURL,
			ReadDatabaseURL:     "postgres://replica/passbook",
			RedisURL:            got.RedisURL,
			JWTKeys:             []config.Key{{ID: "new", Secret: key}, {ID: "old", Secret: key}},
			HTTPAddr:            ":80",
			OpsAddr:             "0.0.0.0:0",
			OpsToken:            "0123456789abcdef",
			OpsHosts:            []string{"a", "b"},
			QueuePrefix:         "a-b_c.9",
			Partitions:          1024,
			MaxQueuedPerAccount: 1,
			ShutdownDelay:       90 * time.Second,
			MaxConnections:      10,
			Log:                 config.Log{Level: slog.LevelDebug},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	})
	t.Run("EverythingWrong", func(t *testing.T) {
		cfg, err := config.LoadAPI(from(map[string]string{
			"DATABASE_URL":           "postgres://passbook:" + password + "@db:port/passbook",
			"REDIS_URL":              "redis+cluster://:" + password + "@a:6379,b:6379",
			"JWT_KEYS":               bareKey + ",:" + bareKey + ",k1:" + bareKey + ",k2:(" + bareKey,
			"HTTP_ADDR":              "8080",
			"OPS_ADDR":               "0.0.0.0:99999",
			"OPS_TOKEN":              token,
			"QUEUE_PREFIX":           "Pass book",
			"QUEUE_PARTITIONS":       "0",
			"MAX_QUEUED_PER_ACCOUNT": "many",
			"SHUTDOWN_DELAY":         "5",
			"LOG_LEVEL":              "loud",
			"LOG_FORMAT":             "xml",
		}))
		if !reflect.DeepEqual(cfg, config.API{}) {
			t.Errorf("half a config came with the error: %+v", cfg)
		}
		wantLines(t, err,
			"DATABASE_URL: pgx can't use it: its form, a parameter, or a file that it names; want a postgres:// URL, any password percent-encoded (postgres://passbook@localhost:5432/passbook)",
			"REDIS_URL: its scheme is not one that this version takes; want a redis:// or rediss:// URL, any password percent-encoded (redis://localhost:6379/0)",
			"JWT_KEYS: key 1 is not kid:base64, key 2 has no kid, key 3 has 12 bytes, not 32, key 4 is not base64; want kid:base64,… with at least 32 random bytes each (2026-01:BASE64, the latter from `openssl rand -base64 32`)",
			`HTTP_ADDR: "8080" is not host:port; want an address to listen on (127.0.0.1:8080)`,
			`OPS_ADDR: "0.0.0.0:99999" has no port from 0 to 65535; want an address to listen on (127.0.0.1:9090)`,
			`QUEUE_PREFIX: "Pass book" has another form; want up to 32 lower-case letters, digits, dots, dashes and underscores, the first a letter or a digit, the same on every process (passbook)`,
			`QUEUE_PARTITIONS: "0" is out of range or no number; want a number from 1 to 1024, the same on every process (16)`,
			`MAX_QUEUED_PER_ACCOUNT: "many" is out of range or no number; want a number of at least 1 (50000)`,
			`SHUTDOWN_DELAY: "5" is out of range or no duration; want a duration from 0s to 1h0m0s (5s)`,
			`LOG_LEVEL: "loud" is not a level; want debug, info, warn or error (info)`,
			`LOG_FORMAT: "xml" is not a format; want json or text (json)`,
			"OPS_TOKEN: has fewer than 16 characters; want at least 16 visible ASCII characters (from `openssl rand -hex 32`)",
		)
	})
	t.Run("EverythingMissing", func(t *testing.T) {
		_, err := config.LoadAPI(from(nil))
		wantNames(t, err, "DATABASE_URL", "REDIS_URL", "JWT_KEYS")
	})
}

func TestLoadWorker(t *testing.T) {
	t.Run("Defaults", func(t *testing.T) {
		got, err := config.LoadWorker(with("JWT_KEYS", ""))
		if err != nil {
			t.Fatal(err)
		}
		want := config.Worker{
			DatabaseURL: "postgres://passbook:" + password + "@db:5432/passbook",
			RedisURL:    "redis://:" + password + "@cache:6379/0",
			OpsAddr:     "127.0.0.1:9091",
			QueuePrefix: "passbook",
			Partitions:  16,
			Log:         config.Log{Level: slog.LevelInfo, JSON: true},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	})
	t.Run("EverythingMissing", func(t *testing.T) {
		_, err := config.LoadWorker(from(map[string]string{"OPS_ADDR": ":0"}))
		wantNames(t, err, "DATABASE_URL", "REDIS_URL", "OPS_TOKEN")
	})
}

func TestLoadDatabase(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		got, err := config.LoadDatabase(from(map[string]string{"DATABASE_URL": "postgres://db/x", "LOG_LEVEL": "error", "LOG_FORMAT": "text"}))
		if err != nil {
			t.Fatal(err)
		}
		want := config.Database{DatabaseURL: "postgres://db/x", Log: config.Log{Level: slog.LevelError}}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("EverythingWrong", func(t *testing.T) {
		_, err := config.LoadDatabase(from(map[string]string{"LOG_LEVEL": "INFO", "LOG_FORMAT": "JSON"}))
		wantNames(t, err, "DATABASE_URL", "LOG_LEVEL", "LOG_FORMAT")
	})
}

// Each value is taken (no fault) or is the only fault.
func TestValues(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString(key)
	short := base64.StdEncoding.EncodeToString(key[:31])
	tests := []struct {
		name  string
		value string
		ok    bool
	}{
		{"MAX_CONNECTIONS", "1", true},
		{"MAX_CONNECTIONS", "0", false},
		{"MAX_CONNECTIONS", "1000000000", false},
		{"MAX_CONNECTIONS", "all", false},
		{"MAX_CONNECTIONS_PER_ADDRESS", "0", true},
		{"MAX_CONNECTIONS_PER_ADDRESS", "1000000000", true},
		{"MAX_CONNECTIONS_PER_ADDRESS", "-1", false},
		{"SHUTDOWN_DELAY", "0s", true},
		{"SHUTDOWN_DELAY", "1h", true},
		{"SHUTDOWN_DELAY", "-1s", false},
		{"SHUTDOWN_DELAY", "1h1s", false},
		{"DATABASE_URL", "postgresql://u:p@a:1,b:2/x?target_session_attrs=read-write&pool_max_conns=4", true},
		{"DATABASE_URL", "postgres:///x?host=/run/postgresql", true},
		{"DATABASE_URL", "postgres://u:" + password + "@a:1/x?pool_max_conns=all", false},
		{"DATABASE_URL", "postgres://u:" + password + "%zz@a/x", false},
		{"DATABASE_URL", "postgres://u:" + password + "@a/x?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", false},
		{"DATABASE_URL", "postgres://u:p@" + password + "@a:1/x", false},
		{"DATABASE_URL", "postgres://u:p@a:1,b@" + password + ":2/x", false},
		{"DATABASE_URL", "postgres://u:1/" + password + "@a:1/x", false},
		{"DATABASE_URL", "postgres://u:p%40" + password + "@a:1/x", true},
		{"DATABASE_URL", "mysql://u:" + password + "@a/x?a=b", false},
		{"READ_DATABASE_URL", "postgres://u:p@" + password + "@a/x", false},
		{"DATABASE_URL", "host=a password=" + password, false},

		{"REDIS_URL", "rediss://u:p@a:6380/3", true},
		{"REDIS_URL", "redis://a", true},
		{"REDIS_URL", "redis://:p@" + password + "@a:6379", true}, // the last @ ends the password
		{"REDIS_URL", "redis://:1/" + password + "@a:6379", false},
		{"REDIS_URL", "redis://:p?" + password + "@a:6379", false},
		{"REDIS_URL", "redis://:" + password + "@a:6379/zero", false},
		{"REDIS_URL", "redis://:" + password + "%zz@a:6379", false},
		{"REDIS_URL", "redis://:" + password + "@a:6379?no_such=1", false},
		{"REDIS_URL", "redis+sentinel://:" + password + "@a:26379/main", false},
		{"REDIS_URL", "unix:///run/redis.sock", false},
		{"REDIS_URL", ":" + password + "@a:6379", false},

		{"JWT_KEYS", "k:" + base64.URLEncoding.EncodeToString(key), true},
		{"JWT_KEYS", "a:" + encoded + ",b:" + encoded, true},
		{"JWT_KEYS", "a:" + short, false},
		{"JWT_KEYS", "a:" + base64.StdEncoding.EncodeToString(make([]byte, 32)), false},
		{"JWT_KEYS", "a:" + encoded + ",a:" + encoded, false},
		{"JWT_KEYS", "a:" + encoded + ",", false},
		{"JWT_KEYS", ":" + encoded, false},
		{"JWT_KEYS", encoded, false},
		{"JWT_KEYS", "a:" + encoded + ",b:?" + bareKey, false},

		{"HTTP_ADDR", "localhost:0", true},
		{"HTTP_ADDR", "[::1]:8080", true},
		{"HTTP_ADDR", ":8080", true},
		{"HTTP_ADDR", "api.example:65535", true},
		{"HTTP_ADDR", "localhost", false},
		{"HTTP_ADDR", "::1:8080", false},
		{"HTTP_ADDR", "localhost:", false},
		{"HTTP_ADDR", "localhost:http", false},
		{"HTTP_ADDR", "localhost:-1", false},
		{"HTTP_ADDR", "localhost:65536", false},
		{"HTTP_ADDR", "http://localhost:80", false},
		{"HTTP_ADDR", "/localhost:80", false},

		{"OPS_ADDR", "localhost:0", true},
		{"OPS_ADDR", "[::1]:9090", true},
		{"OPS_ADDR", "127.8.8.8:9090", true},
		{"OPS_ADDR", "[::ffff:127.0.0.1]:9090", true},
		{"OPS_ADDR", "nowhere", false},

		{"OPS_TOKEN", "0123456789abcdef", true},
		{"OPS_TOKEN", "0123456789abcde", false},
		{"OPS_TOKEN", "0123456789 abcdef", false},
		{"OPS_TOKEN", "0123456789abcdéf", false},

		{"OPS_HOSTS", "worker", true},
		{"OPS_HOSTS", "worker,worker.internal.example", true},
		{"OPS_HOSTS", "worker,", false},
		{"OPS_HOSTS", "worker:9091", false},
		{"OPS_HOSTS", "http://worker", false},

		{"QUEUE_PREFIX", "0", true},
		{"QUEUE_PREFIX", strings.Repeat("a", 32), true},
		{"QUEUE_PREFIX", strings.Repeat("a", 33), false},
		{"QUEUE_PREFIX", "-a", false},
		{"QUEUE_PREFIX", "a:b", false},
		{"QUEUE_PREFIX", "a{b}", false},
		{"QUEUE_PREFIX", "a*", false},
		{"QUEUE_PREFIX", "a\n", false},

		{"QUEUE_PARTITIONS", "1", true},
		{"QUEUE_PARTITIONS", "1025", false},
		{"QUEUE_PARTITIONS", "-1", false},
		{"QUEUE_PARTITIONS", "1.5", false},

		{"MAX_QUEUED_PER_ACCOUNT", "0", false},
		{"MAX_QUEUED_PER_ACCOUNT", "99999999999999999999", false},

		{"LOG_LEVEL", "warn", true},
		{"LOG_LEVEL", "warning", false},
		{"LOG_FORMAT", "json", true},
		{"LOG_FORMAT", "logfmt", false},
	}
	for _, test := range tests {
		t.Run(test.name+"="+test.value, func(t *testing.T) {
			_, err := config.LoadAPI(with(test.name, test.value))
			if test.ok {
				wantNames(t, err)
				return
			}
			wantNames(t, err, test.name)
		})
	}
}

func TestOpsTokenRequired(t *testing.T) {
	for _, addr := range []string{":9090", "0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090", "ops.example:9090", "localhost.example:0"} {
		t.Run(addr, func(t *testing.T) {
			_, err := config.LoadAPI(with("OPS_ADDR", addr))
			wantLines(t, err, "OPS_TOKEN: missing, and OPS_ADDR is not a loopback address; want at least 16 visible ASCII characters (from `openssl rand -hex 32`)")
			if _, err := config.LoadAPI(with("OPS_ADDR", addr, "OPS_TOKEN", "0123456789abcdef")); err != nil {
				t.Errorf("with a token: %v", err)
			}
		})
	}
}

func wantLines(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no fault")
	}
	got := strings.Split(err.Error(), "\n")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	wantNoSecrets(t, err)
}

// wantNames compares which variables are at fault.
func wantNames(t *testing.T, err error, want ...string) {
	t.Helper()
	var got []string
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			name, _, _ := strings.Cut(line, ":")
			got = append(got, name)
		}
		wantNoSecrets(t, err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("at fault %v, want %v: %v", got, want, err)
	}
}

func wantNoSecrets(t *testing.T, err error) {
	t.Helper()
	for _, word := range []string{password, bareKey, token, base64.StdEncoding.EncodeToString(key)} {
		if strings.Contains(err.Error(), word) {
			t.Errorf("a secret in the fault: %v", err)
		}
	}
}
