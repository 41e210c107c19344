package config_test

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
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

func TestLoadAPI_Defaults(t *testing.T) {
	got, err := config.LoadAPI(with())
	if err != nil {
		t.Fatal(err)
	}
	want := config.API{
		Process: config.Process{
			DatabaseURL: "postgres://passbook:" + password + "@db:5432/passbook",
			RedisURL:    "redis://:" + password + "@cache:6379/0",
			OpsAddr:     "127.0.0.1:9090",
			QueuePrefix: "passbook",
			Partitions:  16,
			Log:         config.Log{Level: slog.LevelInfo, JSON: true},
		},
		JWTKeys:             []config.Key{{ID: "k1", Secret: key}},
		HTTPAddr:            "127.0.0.1:8080",
		MaxQueuedPerAccount: 50000,
		Limits:              config.Limits{RequestsPerMinute: 6000, AddressPerMinute: 60, AccountsPerUser: 1000},
		MaxConnections:      got.MaxConnections, // by the limit of open files

		MaxConnectionsPerAddress: max(got.MaxConnections/4, 1),
	}
	if !reflect.DeepEqual(got, want) || got.MaxConnections < 1 || got.MaxConnections > 16384 {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestLoadAPI_EverythingSet(t *testing.T) {
	got, err := config.LoadAPI(with(
		"HTTP_ADDR", ":80", "OPS_ADDR", "0.0.0.0:0", "OPS_TOKEN", "0123456789abcdef", "OPS_READ_TOKEN", "fedcba9876543210", "OPS_HOSTS", "a,b",
		"QUEUE_PREFIX", "a-b_c.9", "QUEUE_PARTITIONS", "1024", "MAX_QUEUED_PER_ACCOUNT", "1", "SHUTDOWN_DELAY", "1m30s",
		"MAX_CONNECTIONS", "10", "MAX_CONNECTIONS_PER_ADDRESS", "0",
		"RATE_LIMIT_PER_MINUTE", "1", "ADDRESS_LIMIT_PER_MINUTE", "0", "MAX_ACCOUNTS_PER_USER", "3", "TRUSTED_PROXIES", "10.0.0.0/8,::1",
		"LOG_LEVEL", "debug", "LOG_FORMAT", "text", "READ_DATABASE_URL", "postgres://replica/passbook",
		"JWT_KEYS", "new:"+base64.RawURLEncoding.EncodeToString(key)+",old:"+base64.RawStdEncoding.EncodeToString(key),
	))
	if err != nil {
		t.Fatal(err)
	}
	want := config.API{
		Process: config.Process{
			DatabaseURL:   got.DatabaseURL,
			RedisURL:      got.RedisURL,
			OpsAddr:       "0.0.0.0:0",
			OpsToken:      "0123456789abcdef",
			OpsReadToken:  "fedcba9876543210",
			OpsHosts:      []string{"a", "b"},
			QueuePrefix:   "a-b_c.9",
			Partitions:    1024,
			ShutdownDelay: 90 * time.Second,
			Log:           config.Log{Level: slog.LevelDebug},
		},
		ReadDatabaseURL:     "postgres://replica/passbook",
		JWTKeys:             []config.Key{{ID: "new", Secret: key}, {ID: "old", Secret: key}},
		HTTPAddr:            ":80",
		MaxQueuedPerAccount: 1,
		Limits: config.Limits{
			RequestsPerMinute: 1, AccountsPerUser: 3,
			Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		},
		MaxConnections: 10,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestLoadAPI_EverythingWrong(t *testing.T) {
	cfg, err := config.LoadAPI(from(map[string]string{
		"DATABASE_URL":           "postgres://passbook:" + password + "@db:port/passbook",
		"REDIS_URL":              "redis+mesh://:" + password + "@a:6379,b:6379",
		"JWT_KEYS":               bareKey + ",:" + bareKey + ",k1:" + bareKey + ",k2:(" + bareKey,
		"HTTP_ADDR":              "8080",
		"OPS_ADDR":               "0.0.0.0:99999",
		"OPS_TOKEN":              token,
		"OPS_READ_TOKEN":         "short",
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
		"REDIS_URL: can't be read: its scheme, its form, its database number or a parameter; want a redis://, redis+cluster:// or redis+sentinel:// URL, or rediss… for TLS, any password percent-encoded (redis://localhost:6379/0)",
		`OPS_ADDR: "0.0.0.0:99999" has no port from 0 to 65535; want an address to listen on (127.0.0.1:9090)`,
		`QUEUE_PREFIX: "Pass book" has another form; want up to 32 lower-case letters, digits, dots, dashes and underscores, the first a letter or a digit, the same on every process (passbook)`,
		`QUEUE_PARTITIONS: "0" is out of range or no number; want a number from 1 to 1024, the same on every process (16)`,
		`SHUTDOWN_DELAY: "5" is out of range or no duration; want a duration from 0s to 1h0m0s (5s)`,
		`LOG_LEVEL: "loud" is not a level; want debug, info, warn or error (info)`,
		`LOG_FORMAT: "xml" is not a format; want json or text (json)`,
		"OPS_TOKEN: has fewer than 16 characters; want at least 16 visible ASCII characters (from `openssl rand -hex 32`)",
		"OPS_READ_TOKEN: has fewer than 16 characters; want at least 16 visible ASCII characters, other than those of OPS_TOKEN (from `openssl rand -hex 32`)",
		"JWT_KEYS: key 1 is not kid:base64, key 2 has no kid, key 3 has 12 bytes, fewer than 32, key 4 is not base64; want kid:base64,… with at least 32 random bytes each (2026-01:BASE64, the latter from `openssl rand -base64 32`)",
		`HTTP_ADDR: "8080" is not host:port; want an address to listen on (127.0.0.1:8080)`,
		`MAX_QUEUED_PER_ACCOUNT: "many" is out of range or no number; want a number of at least 1 (50000)`,
	)
}

func TestLoadAPI_EverythingMissing(t *testing.T) {
	_, err := config.LoadAPI(from(nil))
	wantNames(t, err, "DATABASE_URL", "REDIS_URL", "JWT_KEYS")
}

func TestLoadWorker(t *testing.T) {
	t.Run("Defaults", func(t *testing.T) {
		got, err := config.LoadWorker(with("JWT_KEYS", ""))
		if err != nil {
			t.Fatal(err)
		}
		want := config.Process{
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
	t.Run("QueuesWrite", func(t *testing.T) {
		for text, want := range map[string]bool{"true": true, "false": false, "": false} {
			if got, err := config.LoadWorker(with("OPS_QUEUES_WRITE", text)); err != nil || got.QueuesWrite != want {
				t.Errorf("%q: %t, %v; want %t", text, got.QueuesWrite, err, want)
			}
		}
		_, err := config.LoadWorker(with("OPS_QUEUES_WRITE", "yes"))
		wantLines(t, err, `OPS_QUEUES_WRITE: "yes" is neither; want true or false (false)`)
	})
	t.Run("ReadTokenOfTheOther", func(t *testing.T) {
		_, err := config.LoadWorker(with("OPS_TOKEN", "0123456789abcdef", "OPS_READ_TOKEN", "0123456789abcdef"))
		wantLines(t, err, "OPS_READ_TOKEN: is that of OPS_TOKEN; want at least 16 visible ASCII characters, other than those of OPS_TOKEN (from `openssl rand -hex 32`)")
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

func TestLoadQueues(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		got, err := config.LoadQueues(from(map[string]string{"DATABASE_URL": "postgres://db/x", "REDIS_URL": "redis://r", "QUEUE_PREFIX": "bank", "QUEUE_PARTITIONS": "4"}))
		if err != nil {
			t.Fatal(err)
		}
		want := config.Queues{
			Database: config.Database{DatabaseURL: "postgres://db/x", Log: config.Log{Level: slog.LevelInfo, JSON: true}},
			RedisURL: "redis://r", QueuePrefix: "bank", Partitions: 4,
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("EverythingWrong", func(t *testing.T) {
		_, err := config.LoadQueues(from(map[string]string{"QUEUE_PREFIX": "A B", "QUEUE_PARTITIONS": "0"}))
		wantNames(t, err, "DATABASE_URL", "REDIS_URL", "QUEUE_PREFIX", "QUEUE_PARTITIONS")
	})
}

func TestLoadAPI_TakesValue(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString(key)
	for _, test := range []struct{ name, value string }{
		{"MAX_CONNECTIONS", "1"},
		{"MAX_CONNECTIONS_PER_ADDRESS", "0"},
		{"MAX_CONNECTIONS_PER_ADDRESS", "1000000000"},
		{"SHUTDOWN_DELAY", "0s"},
		{"SHUTDOWN_DELAY", "1h"},
		{"DATABASE_URL", "postgresql://u:p@a:1,b:2/x?target_session_attrs=read-write&pool_max_conns=4"},
		{"DATABASE_URL", "postgres:///x?host=/run/postgresql"},
		{"DATABASE_URL", "postgres://u:p%40" + password + "@a:1/x"},
		{"REDIS_URL", "rediss://u:p@a:6380/3"},
		{"REDIS_URL", "redis://a"},
		{"REDIS_URL", "redis://:p@" + password + "@a:6379"}, // the last @ ends the password
		{"REDIS_URL", "redis+cluster://u:p@a:1,b:2,c?pool_size=3"},
		{"REDIS_URL", "rediss+cluster://[::1]:1,[::2]:2/0"},
		{"REDIS_URL", "redis+sentinel://:p@" + password + "@a:1,b/main"},
		{"REDIS_URL", "rediss+sentinel://a/main?db=3&sentinel_password=" + password},
		{"JWT_KEYS", "k:" + base64.URLEncoding.EncodeToString(key)},
		{"JWT_KEYS", "a:" + encoded + ",b:" + encoded},
		{"HTTP_ADDR", "localhost:0"},
		{"HTTP_ADDR", "[::1]:8080"},
		{"HTTP_ADDR", ":8080"},
		{"HTTP_ADDR", "api.example:65535"},
		{"OPS_ADDR", "localhost:0"},
		{"OPS_ADDR", "[::1]:9090"},
		{"OPS_ADDR", "127.8.8.8:9090"},
		{"OPS_ADDR", "[::ffff:127.0.0.1]:9090"},
		{"OPS_TOKEN", "0123456789abcdef"},
		{"OPS_HOSTS", "worker"},
		{"OPS_HOSTS", "worker,worker.internal.example"},
		{"QUEUE_PREFIX", "0"},
		{"QUEUE_PREFIX", strings.Repeat("a", 32)},
		{"QUEUE_PARTITIONS", "1"},
		{"LOG_LEVEL", "warn"},
		{"LOG_FORMAT", "json"},
	} {
		t.Run(test.name+"="+test.value, func(t *testing.T) {
			_, err := config.LoadAPI(with(test.name, test.value))
			wantNames(t, err)
		})
	}
}

// A wrong value is the only fault.
func TestLoadAPI_RefusesValue(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString(key)
	short := base64.StdEncoding.EncodeToString(key[:31])
	for _, test := range []struct{ name, value string }{
		{"MAX_CONNECTIONS", "0"},
		{"MAX_CONNECTIONS", "1000000000"},
		{"MAX_CONNECTIONS", "all"},
		{"MAX_CONNECTIONS_PER_ADDRESS", "-1"},
		{"SHUTDOWN_DELAY", "-1s"},
		{"SHUTDOWN_DELAY", "1h1s"},
		{"DATABASE_URL", "postgres://u:" + password + "@a:1/x?pool_max_conns=all"},
		{"DATABASE_URL", "postgres://u:" + password + "%zz@a/x"},
		{"DATABASE_URL", "postgres://u:" + password + "@a/x?sslmode=verify-full&sslrootcert=/nowhere/ca.pem"},
		{"DATABASE_URL", "postgres://u:p@" + password + "@a:1/x"},
		{"DATABASE_URL", "postgres://u:p@a:1,b@" + password + ":2/x"},
		{"DATABASE_URL", "postgres://u:1/" + password + "@a:1/x"},
		{"DATABASE_URL", "mysql://u:" + password + "@a/x?a=b"},
		{"READ_DATABASE_URL", "postgres://u:p@" + password + "@a/x"},
		{"DATABASE_URL", "host=a password=" + password},
		{"REDIS_URL", "redis://:1/" + password + "@a:6379"},
		{"REDIS_URL", "redis://:p?" + password + "@a:6379"},
		{"REDIS_URL", "redis://:" + password + "@a:6379/zero"},
		{"REDIS_URL", "redis://:" + password + "%zz@a:6379"},
		{"REDIS_URL", "redis://:" + password + "@a:6379?no_such=1"},
		{"REDIS_URL", "redis+sentinel://:" + password + "@a:26379"},
		{"REDIS_URL", "redis+sentinel://:" + password + "@a:26379/main/2"},
		{"REDIS_URL", "redis+sentinel://:" + password + "@a:26379/main?replica_only=true"},
		{"REDIS_URL", "redis+cluster://:" + password + "@a:1,:2"},
		{"REDIS_URL", "redis+cluster://:" + password + "@a:1/3"},
		{"REDIS_URL", "redis+cluster://:" + password + "@a:1,b?read_only=true"},
		{"REDIS_URL", "redis+cluster://:1/" + password + "@a:1,b:2"},
		{"REDIS_URL", "redis+cluster://:" + password + "%zz@a:1,b:2"},
		{"REDIS_URL", "redis+:" + password + "@a"},
		{"REDIS_URL", "unix:///run/redis.sock"},
		{"REDIS_URL", ":" + password + "@a:6379"},
		{"JWT_KEYS", "a:" + short},
		{"JWT_KEYS", "a:" + base64.StdEncoding.EncodeToString(make([]byte, 32))},
		{"JWT_KEYS", "a:" + encoded + ",a:" + encoded},
		{"JWT_KEYS", "a:" + encoded + ","},
		{"JWT_KEYS", ":" + encoded},
		{"JWT_KEYS", encoded},
		{"JWT_KEYS", "a:" + encoded + ",b:?" + bareKey},
		{"HTTP_ADDR", "localhost"},
		{"HTTP_ADDR", "::1:8080"},
		{"HTTP_ADDR", "localhost:"},
		{"HTTP_ADDR", "localhost:http"},
		{"HTTP_ADDR", "localhost:-1"},
		{"HTTP_ADDR", "localhost:65536"},
		{"HTTP_ADDR", "http://localhost:80"},
		{"HTTP_ADDR", "/localhost:80"},
		{"OPS_ADDR", "nowhere"},
		{"OPS_TOKEN", "0123456789abcde"},
		{"OPS_TOKEN", "0123456789 abcdef"},
		{"OPS_TOKEN", "0123456789abcdéf"},
		{"OPS_HOSTS", "worker,"},
		{"OPS_HOSTS", "worker:9091"},
		{"OPS_HOSTS", "http://worker"},
		{"QUEUE_PREFIX", strings.Repeat("a", 33)},
		{"QUEUE_PREFIX", "-a"},
		{"QUEUE_PREFIX", "a:b"},
		{"QUEUE_PREFIX", "a{b}"},
		{"QUEUE_PREFIX", "a*"},
		{"QUEUE_PREFIX", "a\n"},
		{"QUEUE_PARTITIONS", "1025"},
		{"QUEUE_PARTITIONS", "-1"},
		{"QUEUE_PARTITIONS", "1.5"},
		{"MAX_QUEUED_PER_ACCOUNT", "0"},
		{"MAX_QUEUED_PER_ACCOUNT", "99999999999999999999"},
		{"LOG_LEVEL", "warning"},
		{"LOG_FORMAT", "logfmt"},
	} {
		t.Run(test.name+"="+test.value, func(t *testing.T) {
			_, err := config.LoadAPI(with(test.name, test.value))
			wantNames(t, err, test.name)
		})
	}
}

// inFile writes a file with the text and returns its path.
func inFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFiles_HaveTheValues(t *testing.T) {
	keys := "k1:" + base64.StdEncoding.EncodeToString(key)
	got, err := config.LoadAPI(from(map[string]string{
		"DATABASE_URL_FILE":      inFile(t, "postgres://passbook:"+password+"@db/passbook\n"),
		"READ_DATABASE_URL_FILE": inFile(t, "postgres://replica/passbook"),
		"REDIS_URL_FILE":         inFile(t, "redis://cache:6379\n"),
		"JWT_KEYS_FILE":          inFile(t, keys+"\n"),
		"OPS_TOKEN_FILE":         inFile(t, "0123456789abcdef\n"),
		"OPS_READ_TOKEN_FILE":    inFile(t, "fedcba9876543210\n"),
		"OPS_ADDR":               ":9090", // which requires the token
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := got
	want.DatabaseURL, want.ReadDatabaseURL = "postgres://passbook:"+password+"@db/passbook", "postgres://replica/passbook"
	want.RedisURL, want.OpsToken = "redis://cache:6379", "0123456789abcdef"
	want.OpsReadToken = "fedcba9876543210"
	want.JWTKeys = []config.Key{{ID: "k1", Secret: key}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// Each fault of a file stands beside all others, under the variable that the operator has set.
func TestFiles_Faults(t *testing.T) {
	both, missing := inFile(t, "redis://"+password), filepath.Join(t.TempDir(), "missing")
	empty, folder := inFile(t, "\n"), t.TempDir()
	_, err := config.LoadAPI(from(map[string]string{
		"DATABASE_URL_FILE":      missing,
		"READ_DATABASE_URL_FILE": folder,
		"REDIS_URL_FILE":         both,
		"REDIS_URL":              "redis://" + password,
		"JWT_KEYS_FILE":          empty,
		"OPS_TOKEN_FILE":         inFile(t, token+"\n"),
		"LOG_LEVEL":              "loud",
	}))
	wantLines(t, err,
		"DATABASE_URL_FILE: "+missing+": no such file or directory; want a file with a postgres:// URL, any password percent-encoded (postgres://passbook@localhost:5432/passbook)",
		"REDIS_URL_FILE: set beside REDIS_URL, keep one of the two; want a file with a redis://, redis+cluster:// or redis+sentinel:// URL, or rediss… for TLS, any password percent-encoded (redis://localhost:6379/0)",
		`LOG_LEVEL: "loud" is not a level; want debug, info, warn or error (info)`,
		"OPS_TOKEN_FILE: has fewer than 16 characters; want a file with at least 16 visible ASCII characters (from `openssl rand -hex 32`)",
		"JWT_KEYS_FILE: "+empty+": empty; want a file with kid:base64,… with at least 32 random bytes each (2026-01:BASE64, the latter from `openssl rand -base64 32`)",
		"READ_DATABASE_URL_FILE: "+folder+": is a directory; want a file with a postgres:// URL, any password percent-encoded, or nothing where there is no replica (postgres://passbook@replica:5432/passbook)",
	)
}

func TestFiles_RefuseValue(t *testing.T) {
	for name, path := range map[string]string{
		"SecretAsPath":    "redis://:" + password + "@cache",
		"Endless":         "/dev/zero",
		"SecondNewline":   inFile(t, "redis://cache\n\n"),
		"WithoutValue":    inFile(t, ""),
		"ParserRefusesIt": inFile(t, "mysql://:"+password+"@cache"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.LoadAPI(with("REDIS_URL", "", "REDIS_URL_FILE", path))
			wantNames(t, err, "REDIS_URL_FILE")
		})
	}
}

// A variable that is no secret has no variable with _FILE.
func TestFiles_ForSecretsOnly(t *testing.T) {
	got, err := config.LoadAPI(with("LOG_LEVEL"+"_FILE", inFile(t, "debug")))
	if err != nil || got.Log.Level != slog.LevelInfo {
		t.Errorf("level %v, %v", got.Log.Level, err)
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
