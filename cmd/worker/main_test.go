package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

// A process that can never reach its database ends with an error.
func TestRunEndsAtPermanentFaults(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(u.User.Username(), "wrong-password")
	env := map[string]string{
		"DATABASE_URL": u.String(), "REDIS_URL": "redis://127.0.0.1:1", "OPS_ADDR": "127.0.0.1:0",
	}
	for name, args := range map[string][]string{
		"Work": nil, "Verify": {"verify"}, "Replay": {"jobs", "replay", "0197c1f2-6d3a-7b41-9c55-2f8e4d10a6b3"}, "Failed": {"jobs", "failed"},
		"Show": {"accounts", "show", "1234"}, "Freeze": {"accounts", "freeze", "1234", "--reason", "x"}, "Queues": {"queues"},
		"Archive": {"archive", "--before", "2020-01-01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), args, func(name string) string { return env[name] }, io.Discard, io.Discard)
			if !errors.Is(err, postgres.ErrMisconfigured) || strings.Contains(err.Error(), "wrong-password") {
				t.Errorf("%v, want %v", err, postgres.ErrMisconfigured)
			}
		})
	}
}

// A worker whose role may not apply jobs ends with an error that names the missing right.
func TestRunNeedsExecute(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // nothing is pending on it
	const reader = `CREATE ROLE reader LOGIN PASSWORD 'reader'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
		GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO reader`
	if _, err := conn.Exec(t.Context(), reader); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("reader", "reader")
	env := map[string]string{"DATABASE_URL": u.String(), "REDIS_URL": testenv.Redis(t), "OPS_ADDR": "127.0.0.1:0"}
	err = run(t.Context(), nil, func(name string) string { return env[name] }, io.Discard, io.Discard)
	if !errors.Is(err, postgres.ErrUnsuitable) || !strings.Contains(err.Error(), "role reader has no right EXECUTE on function apply_job") {
		t.Errorf("got %v, want the missing right", err)
	}
}

// A worker does not start on a Redis that lacks what the queues need.
func TestRunRefusesAnOldRedis(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testenv.Postgres(t), "REDIS_URL": olderRedis(t), "OPS_ADDR": "127.0.0.1:0"}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // a worker that starts would run for ever
	defer cancel()
	err := run(ctx, nil, func(name string) string { return env[name] }, io.Discard, io.Discard)
	if !errors.Is(err, queue.ErrOldRedis) || !strings.Contains(err.Error(), "must be 6.2 or newer") {
		t.Errorf("got %v, want %v", err, queue.ErrOldRedis)
	}
}

// olderRedis returns the URL of a real Redis that says that it is version 5.
func olderRedis(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var relays sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		relays.Wait()
	})
	server := u.Host
	u.Host = listener.Addr().String()
	relays.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			relays.Go(func() { relay(t, client, server) })
		}
	})
	return u.String()
}

// relay passes a connection on until the client closes it, and says another version in its answers.
func relay(t *testing.T, client net.Conn, server string) {
	t.Helper()
	defer client.Close() //nolint:errcheck // it has ended
	store, err := new(net.Dialer).DialContext(context.WithoutCancel(t.Context()), "tcp", server)
	if err != nil {
		t.Error(err)
		return
	}
	var answers sync.WaitGroup
	defer answers.Wait()
	defer store.Close() //nolint:errcheck // it ends the answers
	answers.Go(func() {
		const name, size = "redis_version:", 64 << 10
		buffer := make([]byte, size)
		for {
			n, err := store.Read(buffer)
			if err != nil {
				return
			}
			if at := bytes.Index(buffer[:n], []byte(name)); at >= 0 {
				buffer[at+len(name)] = '5'
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	})
	_, _ = io.Copy(store, client) // until the client closes it
}
