package auth

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/argon2id"
)

func TestCheckPassword(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		password string
		code     string // empty: good
	}{
		"OK/Shortest": {strings.Repeat("a", 10), ""},
		"OK/Longest":  {strings.Repeat("a", 128), ""},
		"OK/Runes":    {strings.Repeat("한", 128), ""},
		"OK/Emoji":    {strings.Repeat("😀", 10), ""},
		// Decomposed syllables count as what they become.
		"OK/NFD":         {strings.Repeat("\u1112\u1161\u11ab", 128), ""},
		"too_short/NFD":  {strings.Repeat("\u1112\u1161\u11ab", 9), "too_short"},
		"invalid_format": {"0123456789\x00\n", "invalid_format"},
		"too_short":      {strings.Repeat("a", 9), "too_short"},
		"too_short/None": {"", "too_short"},
		// More bytes than a character's share must not count.
		"too_short/Runes": {strings.Repeat("한", 9), "too_short"},
		"too_long":        {strings.Repeat("a", 129), "too_long"},
		"too_long/Runes":  {strings.Repeat("한", 129), "too_long"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, CheckPassword(tt.password), tt.code)
		})
	}
}

func TestHasher(t *testing.T) {
	t.Parallel()
	h, err := newHasher()
	if err != nil {
		t.Fatal(err)
	}
	params, _, _, err := argon2id.DecodeHash(h.nobodys)
	if err != nil || *params != *hashParams {
		t.Errorf("nobody's hash has %+v, %v, want %+v", params, err, hashParams)
	}
	if cap(h.slots) < 2 {
		t.Errorf("%d slots, want at least 2", cap(h.slots))
	}
	hash, err := h.hash(t.Context(), testPassword)
	if err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("got %q, %v", hash, err)
	}
	for password, want := range map[string]bool{testPassword: true, testPassword + " ": false} {
		if got, err := h.matches(t.Context(), password, hash); err != nil || got != want {
			t.Errorf("%q matches: got %v, %v, want %v", password, got, err, want)
		}
	}
	if len(h.slots) != 0 {
		t.Errorf("%d slots still taken", len(h.slots))
	}
}

func TestHasher_AllSlotsTaken(t *testing.T) {
	t.Parallel()
	calls := map[string]func(*hasher, context.Context) error{
		"Hash": func(h *hasher, ctx context.Context) error {
			_, err := h.hash(ctx, testPassword)
			return err
		},
		"Matches": func(h *hasher, ctx context.Context) error {
			_, err := h.matches(ctx, testPassword, "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAA")
			return err
		},
	}
	tests := map[string]struct {
		freed time.Duration // after which a slot is
		ctx   func(context.Context) (context.Context, context.CancelFunc)
		want  error
		wait  time.Duration
	}{
		"OK":      {maxHashWait / 2, context.WithCancel, nil, maxHashWait / 2},
		"ErrBusy": {maxHashWait * 2, context.WithCancel, ErrBusy, maxHashWait},
		"ErrDeadlineExceeded": {maxHashWait, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, maxHashWait/2)
		}, context.DeadlineExceeded, maxHashWait / 2},
	}
	for callName, call := range calls {
		for name, tt := range tests {
			t.Run(callName+"/"+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					h := &hasher{slots: make(chan struct{}, 1)}
					h.slots <- struct{}{}
					time.AfterFunc(tt.freed, h.release)
					ctx, cancel := tt.ctx(t.Context())
					defer cancel()
					start := time.Now()
					if err := call(h, ctx); !errors.Is(err, tt.want) {
						t.Errorf("got %v, want %v", err, tt.want)
					}
					if waited := time.Since(start); waited != tt.wait {
						t.Errorf("waited %v, want %v", waited, tt.wait)
					}
				})
			})
		}
	}
}

// wantFault wants a Fault with the code, or none where it is empty.
func wantFault(t *testing.T, err error, code string) {
	t.Helper()
	var fault Fault
	switch {
	case code == "" && err == nil:
	case !errors.As(err, &fault) || fault.Code != code:
		t.Errorf("got %v, want a fault %q", err, code)
	case fault.Detail == "":
		t.Error("the fault has no detail")
	}
}
