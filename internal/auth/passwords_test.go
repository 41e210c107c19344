package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
	h := newHasher(newMetrics(nil))
	params, _, _, err := argon2id.DecodeHash(h.decoy) // it tells the lengths of the salt and the key
	if err != nil || *params != *hashParams {
		t.Errorf("the decoy hash has %+v, %v, want %+v", params, err, hashParams)
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
	if taken := len(h.logIns) + len(h.signUps); taken != 0 {
		t.Errorf("%d slots still taken", taken)
	}
}

func TestHasher_AllSlotsTaken(t *testing.T) {
	t.Parallel()
	calls := map[string]struct {
		slots func(*hasher) slots
		call  func(context.Context, *hasher) error
	}{
		"Hash":    {func(h *hasher) slots { return h.signUps }, hashOne},
		"Matches": {func(h *hasher) slots { return h.logIns }, matchOne},
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
	for name, what := range calls {
		callName, call := name, what.call
		for name, tt := range tests {
			t.Run(callName+"/"+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					h := &hasher{logIns: make(slots, 1), signUps: make(slots, 1), metrics: newMetrics(nil)}
					taken := what.slots(h)
					taken <- struct{}{}
					time.AfterFunc(tt.freed, taken.release)
					ctx, cancel := tt.ctx(t.Context())
					defer cancel()
					start := time.Now()
					if err := call(ctx, h); !errors.Is(err, tt.want) {
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

func hashOne(ctx context.Context, h *hasher) error {
	_, err := h.hash(ctx, testPassword)
	return err
}

func matchOne(ctx context.Context, h *hasher) error {
	_, err := h.matches(ctx, testPassword, "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAA")
	return err
}

// Sign-ups take no slot of a log-in's, and the other way round.
func TestHasher_SlotsApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hasher{logIns: make(slots, 1), signUps: make(slots, 1), metrics: newMetrics(nil)}
		start := time.Now()
		h.signUps <- struct{}{}
		if err := matchOne(t.Context(), h); err != nil {
			t.Errorf("log-in beside a sign-up: %v", err)
		}
		h.signUps.release()
		h.logIns <- struct{}{}
		if err := hashOne(t.Context(), h); err != nil {
			t.Errorf("sign-up beside a log-in: %v", err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestCountSlots(t *testing.T) {
	t.Parallel()
	const mib, unlimited = 1 << 20, math.MaxInt64
	tests := map[string]struct {
		processors      int
		memory          int64
		logIns, signUps int
	}{
		"OneProcessor":  {1, unlimited, 1, 1},
		"TwoProcessors": {2, unlimited, 1, 1},
		"Four":          {4, unlimited, 2, 1},
		"Eight":         {8, unlimited, 6, 1},
		"ThirtyTwo":     {32, unlimited, 24, 7},
		"LittleMemory":  {32, 512 * mib, 5, 1},
		"NoMemory":      {32, 64 * mib, 1, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if logIns, signUps := countSlots(tt.processors, tt.memory); logIns != tt.logIns || signUps != tt.signUps {
				t.Errorf("got %d and %d, want %d and %d", logIns, signUps, tt.logIns, tt.signUps)
			}
		})
	}
}

// wantFault wants a Fault with the code, or none where it is empty.
func wantFault(t *testing.T, err error, code string) {
	t.Helper()
	fault, ok := errors.AsType[Fault](err)
	switch {
	case code == "" && err == nil:
	case !ok || fault.Code != code:
		t.Errorf("got %v, want a fault %q", err, code)
	case fault.Detail == "":
		t.Error("the fault has no detail")
	}
}

// hashesEnv makes the test's own process hash that many passwords.
const hashesEnv = "PASSBOOK_TEST_HASHES"

// 200 log-ins at once, on a machine with more cores than memory, stay within GOMEMLIMIT: the
// slots take a quarter of it, the garbage of the hashes before about as much again.
func TestHasher_Memory(t *testing.T) {
	t.Parallel()
	if os.Getenv(hashesEnv) != "" {
		hashMany(t, 200, 32)
		return
	}
	const limit = 512 << 20
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHasher_Memory$", "-test.v")
	cmd.Env = append(os.Environ(), hashesEnv+"=1", "GOMAXPROCS=32", fmt.Sprintf("GOMEMLIMIT=%d", limit))
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	_, said, _ := bytes.Cut(output, []byte("memory: "))
	var most int64
	if _, err := fmt.Fscan(bytes.NewReader(said), &most); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	if most > limit {
		t.Errorf("took %d MiB, want at most %d", most>>20, limit>>20)
	}
}

// hashMany has clients log in until there are enough hashes, with the slots of 32 processors
// on whatever the test runs on, and prints the most memory that this took. That is what the runtime has ever had from the system: the race detector's own
// memory, several times as much, is not in it.
func hashMany(t *testing.T, clients int, enough int64) {
	t.Helper()
	h := newHasher(newMetrics(nil))
	logIns, _ := countSlots(32, memoryLimit())
	h.logIns = make(slots, logIns)
	var hashes atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for hashes.Load() < enough {
				_, err := h.matches(t.Context(), testPassword, h.decoy)
				if err == nil {
					hashes.Add(1)
				} else if !errors.Is(err, ErrBusy) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Println("memory:", stats.Sys)
}
