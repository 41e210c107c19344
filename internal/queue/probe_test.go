package queue

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A Redis that answers but takes no writes is seen.
func TestCheckWrites(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	client := connect(t, server.URL())
	do := func(args ...any) {
		t.Helper()
		if err := client.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	check := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
		defer cancel()
		return CheckWrites(ctx, client, queues)
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	if left := client.PTTL(t.Context(), keyOf(queues.Name(0), "probe")).Val(); left <= 0 || left > probeLife {
		t.Errorf("the key stays for %v", left)
	}
	for _, fault := range []struct {
		name     string
		from, to []any
	}{
		{"Full", []any{"CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction"}, []any{"CONFIG", "SET", "maxmemory", "0"}},
		{"ReadOnly", []any{"REPLICAOF", "127.0.0.1", "1"}, []any{"REPLICAOF", "NO", "ONE"}},
		{"Forbidden", []any{"ACL", "SETUSER", "default", "-set"}, []any{"ACL", "SETUSER", "default", "+set"}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			do(fault.from...)
			if check() == nil {
				t.Error("no error")
			}
			do(fault.to...)
			if err := check(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	t.Run("Away", func(t *testing.T) {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if check() == nil {
			t.Error("no error")
		}
	})
}

// Before Redis has said who owns the queues, and long after it has, that is unknown.
func TestOwnerIsUnknown(t *testing.T) {
	t.Parallel()
	owner := NewOwner(connect(t, testenv.Redis(t)), "test", uuid.New(), slog.New(slog.DiscardHandler))
	if _, isKnown := owner.IsOther(); isKnown {
		t.Error("known before the first answer")
	}
	owner.Check(t.Context())
	if isOther, isKnown := owner.IsOther(); isOther || !isKnown {
		t.Errorf("another's: %t, known: %t", isOther, isKnown)
	}
}

func TestLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last lastAnswer
		if last.isRecent() {
			t.Error("recent before the first")
		}
		last.note()
		if !last.isRecent() {
			t.Error("not recent")
		}
		<-time.After(knownFor)
		if last.isRecent() {
			t.Errorf("recent after %v", knownFor)
		}
	})
}
