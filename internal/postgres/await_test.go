package postgres_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/migrations"
)

const secret = "s3cret-of-the-url"

// A fault that does not pass ends the wait at once. The error says what to change, and does not
// hold the password.
func TestAwaitNamesPermanentFaults(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	execute(t, server.URL(), `CREATE ROLE idle NOLOGIN PASSWORD '`+secret+`'`)
	execute(t, server.URL(), `CREATE ROLE teller LOGIN PASSWORD '`+secret+`'`)
	execute(t, server.URL(), `CREATE DATABASE closed`)
	execute(t, server.URL(), `REVOKE CONNECT ON DATABASE closed FROM PUBLIC`)
	for name, test := range map[string]struct {
		edit func(*url.URL)
		want []string
	}{
		"Password":         {query("sslmode", "disable"), []string{`user "passbook"`, "correct the user or the password"}},
		"PasswordAnyTLS":   {query("sslmode", "prefer"), []string{`user "passbook"`, "correct the user or the password"}},
		"PasswordTwoHosts": {twice, []string{`user "passbook"`, "correct the user or the password"}},
		"Role":             {as("idle"), []string{`role "idle"`, "pg_hba.conf"}},
		"Database":         {both(as("teller"), database("nowhere")), []string{`database "nowhere"`, "create it"}},
		"Grant":            {both(as("teller"), database("closed")), []string{`database "closed"`, "grant"}},
		"NoSuchParameter":  {both(as("teller"), query("no_such_parameter", "1")), []string{`"no_such_parameter"`, "take it out of the URL"}},
		"ParameterValue":   {both(as("teller"), query("work_mem", "lots")), []string{`"work_mem"`, "take it out of the URL"}},
		"ParameterOfStart": {both(as("teller"), query("max_connections", "1")), []string{`"max_connections"`, "take the parameter out"}},
		"ParameterGranted": {both(as("teller"), query("log_statement", "all")), []string{`"log_statement"`, "grant"}},
		"TLSRefused":       {query("sslmode", "require"), []string{"takes no TLS", "sslmode"}},
		"Certificate":      {selfSigned(t), []string{"certificate is not trusted", "sslrootcert"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			u.User = url.UserPassword(u.User.Username(), secret)
			test.edit(u)
			pool := open(t, u.String())
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			err = postgres.AwaitSchema(t.Context(), pool, 1, log)
			if !errors.Is(err, postgres.ErrMisconfigured) {
				t.Fatalf("%v, want %v", err, postgres.ErrMisconfigured)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v, lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%v: holds the password", err)
			}
		})
	}
}

func query(name, value string) func(*url.URL) {
	return func(u *url.URL) {
		values := u.Query()
		values.Set(name, value)
		u.RawQuery = values.Encode()
	}
}

func as(role string) func(*url.URL) {
	return func(u *url.URL) { u.User = url.UserPassword(role, secret) }
}

func database(name string) func(*url.URL) {
	return func(u *url.URL) { u.Path = "/" + name }
}

func twice(u *url.URL) { u.Host += "," + u.Host }

func both(one, two func(*url.URL)) func(*url.URL) {
	return func(u *url.URL) { one(u); two(u) }
}

// selfSigned points the URL at a server whose certificate no client trusts.
func selfSigned(t *testing.T) func(*url.URL) {
	t.Helper()
	certified := httptest.NewTLSServer(nil)
	t.Cleanup(certified.Close)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 8)) // the request for TLS
			_, _ = conn.Write([]byte("S"))
			_ = tls.Server(conn, &tls.Config{Certificates: certified.TLS.Certificates}).HandshakeContext(t.Context())
			_ = conn.Close()
		}
	}()
	return func(u *url.URL) {
		u.Host = listener.Addr().String()
		query("sslmode", "verify-full")(u)
	}
}

// Await waits for faults that may pass: one of several hosts is away, or a host's name has no
// address yet.
func TestAwaitWaits(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	away, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = away.Close()
	const nowhere = "no..such..host" // no name server is asked
	for name, test := range map[string]struct {
		hosts      func(there string) string
		unknownFor time.Duration
		waits      bool
	}{
		"AnotherHostIsAway":     {func(there string) string { return there + "," + away.Addr().String() }, 0, true},
		"AnotherHostIsAway/Too": {func(there string) string { return away.Addr().String() + "," + there }, 0, true},
		"UnknownHost":           {func(string) string { return nowhere }, time.Hour, true},
		"UnknownHost/TooLong":   {func(string) string { return nowhere }, 0, false},
		"AllHosts":              {func(there string) string { return nowhere + "," + there }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			u.User = url.UserPassword("passbook", secret)
			u.Host = test.hosts(u.Host)
			pool := open(t, u.String())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			waiting := make(chan struct{}, 1)
			done := make(chan error, 1)
			go func() {
				log := slog.New(slog.NewTextHandler(signal{waiting}, nil))
				done <- postgres.AwaitFor(ctx, pool, log, test.unknownFor, func(ctx context.Context) error { return pool.Ping(ctx) })
			}()
			if test.waits {
				<-waiting
				cancel()
			}
			if err := <-done; errors.Is(err, postgres.ErrMisconfigured) == test.waits {
				t.Errorf("waits %t: %v", test.waits, err)
			}
		})
	}
}

// Each check of a start waits for a Postgres that goes away between two checks.
func TestAwaitEachCheck(t *testing.T) {
	t.Parallel()
	final := fmt.Errorf("%w: final", postgres.ErrUnsuitable)
	results := []error{pg("57P01"), pg("57P03"), io.ErrUnexpectedEOF, final, nil}
	pool := open(t, testenv.Postgres(t))
	err := postgres.Await(t.Context(), pool, slog.New(slog.DiscardHandler), func(context.Context) (err error) {
		err, results = results[0], results[1:]
		return err
	})
	if !errors.Is(err, postgres.ErrUnsuitable) || len(results) != 1 {
		t.Errorf("%v, and %d checks remain; want the final one's", err, len(results))
	}
}

// The error about a wrong URL repeats no part of it: pgx's own error quotes what pgx does not
// take for the password.
func TestURLFaultsQuoteNothing(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"postgres://u:" + secret + "/x@h/db", "postgres://u:p@h:" + secret + "/db", "postgres://u:1@h/db?connect_timeout=" + secret,
		"postgres://u:" + secret + "%zz@h/db", "postgres://u@[h:" + secret + "/db", "host=h pasword=" + secret + " port=none",
	} {
		for name, use := range map[string]func() error{
			"open":    func() error { _, err := postgres.Open(t.Context(), postgres.Config{URL: address}); return err },
			"migrate": func() error { _, err := migrations.Up(t.Context(), address); return err },
		} {
			if err := use(); err == nil || strings.Contains(err.Error(), secret) {
				t.Errorf("%s %s: %v", name, address, err)
			}
		}
	}
}
