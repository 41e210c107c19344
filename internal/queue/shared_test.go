package queue

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

// One process at a time holds a shared value. Another takes it once it is released, or once Redis has
// lost the hold.
func TestShared(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	one, two := NewShared(client, queues, "test"), NewShared(client, queues, "test")
	want := func(s *Shared, change, value string, held bool) {
		t.Helper()
		got, isHeld, err := s.Hold(t.Context(), []byte(change))
		if err != nil || string(got) != value || isHeld != held {
			t.Errorf("got %q, held %t, %v; want %q, held %t", got, isHeld, err, value, held)
		}
	}
	want(one, "", "", true)
	want(two, "stolen", "", false)
	want(one, "first", "first", true)
	want(two, "stolen", "first", false)
	if err := two.Release(t.Context()); err != nil { // of what it does not hold
		t.Fatal(err)
	}
	want(two, "stolen", "first", false)
	if err := one.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(two, "second", "second", true)
	want(one, "", "second", false)
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	want(one, "third", "third", true)
	want(two, "", "third", false)
	for _, key := range one.keys {
		if ttl, err := client.PTTL(t.Context(), key).Result(); err != nil || ttl <= 0 {
			t.Errorf("%s stays for %v, %v; want a bound", key, ttl, err)
		}
	}
}

// Another installation's value is neither read nor written.
func TestSharedOfAnotherInstallation(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	owned := func() Queues {
		of := queues
		of.Owner = NewOwner(client, of.Prefix, uuid.New(), slog.New(slog.DiscardHandler))
		of.Owner.Check(t.Context())
		return of
	}
	if _, held, err := NewShared(client, owned(), "test").Hold(t.Context(), []byte("theirs")); err != nil || !held {
		t.Fatalf("held %t, %v", held, err)
	}
	if _, _, err := NewShared(client, owned(), "test").Hold(t.Context(), []byte("ours")); !errors.Is(err, ErrOtherInstallation) {
		t.Errorf("got %v, want %v", err, ErrOtherInstallation)
	}
}
