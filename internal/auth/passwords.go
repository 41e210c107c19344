package auth

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"time"
	"unicode/utf8"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/alexedwards/argon2id"
	"golang.org/x/crypto/argon2"
	"golang.org/x/text/secure/precis"
)

// The lengths of a password, in characters: Unicode code points, as NIST SP 800-63B
// counts them, once the password is prepared (a syllable of Hangul is one, however it
// was typed).
const (
	MinPasswordLen = 10
	MaxPasswordLen = 128
)

// maxHashWait bounds the wait for a slot to hash a password in.
const maxHashWait = time.Second

// hashShare is the part of the process's memory for the hashes being made: a quarter.
// golang.org/x/crypto/argon2 takes no buffer (golang.org/issue/36634), so each hash makes one
// that becomes garbage. The garbage collector starts anew when the heap has doubled, GOGC's 100 %,
// or earlier under GOMEMLIMIT: the hashes, with those that end while it works, take somewhat
// more than twice their share at most.
const hashShare = 4

// countSlots returns how many log-ins and sign-ups may hash at once, at least one each: together
// fewer than there are processors, and no more than fit into memory, in bytes. Three of four are
// for log-ins.
func countSlots(processors int, memory int64) (logIns, signUps int) {
	each := int64(hashParams.Memory) << 10
	all := int(min(int64(processors-1), memory/hashShare/each))
	signUps = max(1, all/4)
	return max(1, all-signUps), signUps
}

// memoryLimit is what the process may use, in bytes: the lesser of GOMEMLIMIT and what its
// control group has, of either version.
func memoryLimit() int64 {
	limit := debug.SetMemoryLimit(-1) // only reads it
	group, err := memlimit.FromCgroup()
	if err != nil || group > math.MaxInt64 { // there is no limit, or no group
		return limit
	}
	return min(limit, int64(group))
}

// hashParams are those of OWASP's Password Storage Cheat Sheet for Argon2id.
// They may be raised: a hash carries its own.
var hashParams = &argon2id.Params{
	Memory:      19456, // KiB
	Iterations:  2,
	Parallelism: 1,
	SaltLength:  16, // bytes
	KeyLength:   32, // bytes
}

// CheckPassword returns a Fault unless password is acceptable.
func CheckPassword(password string) error {
	prepared, err := preparePassword(password)
	switch n := utf8.RuneCountInString(prepared); {
	case err != nil && password != "":
		return Fault{"invalid_format", "must have no control characters, and none that Unicode has not assigned"}
	case n < MinPasswordLen:
		return Fault{"too_short", fmt.Sprintf("must have at least %d characters", MinPasswordLen)}
	case n > MaxPasswordLen:
		return Fault{"too_long", fmt.Sprintf("must have at most %d characters", MaxPasswordLen)}
	}
	return nil
}

// preparePassword returns the form in which a password is hashed and compared, the same for every
// keyboard and system: an OpaqueString (RFC 8265, section 4.2), which is in NFC and has no space
// but that of ASCII.
func preparePassword(password string) (string, error) {
	return precis.OpaqueString.String(password)
}

// hasher hashes and compares a bounded number of passwords at once: a flood of log-ins or sign-ups
// takes neither all memory nor all processors, and a flood of one kind does not block the other.
type hasher struct {
	logIns  slots
	signUps slots
	decoy   string
	metrics *metrics
}

// makeDecoy returns a hash that no password has. A log-in with an unknown email compares with it, and
// so takes as long as one with a known email. Nothing is hashed for it: its salt and its key are random.
func makeDecoy() string {
	random := func(bytes uint32) string {
		made := make([]byte, bytes)
		_, _ = rand.Read(made) // it never fails
		return base64.RawStdEncoding.EncodeToString(made)
	}
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		hashParams.Memory, hashParams.Iterations, hashParams.Parallelism, random(hashParams.SaltLength), random(hashParams.KeyLength))
}

func newHasher(m *metrics) *hasher {
	logIns, signUps := countSlots(min(runtime.GOMAXPROCS(0), runtime.NumCPU()), memoryLimit())
	return &hasher{logIns: make(slots, logIns), signUps: make(slots, signUps), decoy: makeDecoy(), metrics: m}
}

// hash returns the hash that a sign-up stores. ErrBusy where no slot becomes free.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.acquire(ctx, h.signUps); err != nil {
		return "", err
	}
	defer h.signUps.release()
	hash, err := argon2id.CreateHash(password, hashParams)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return hash, nil
}

// matches compares the password of a log-in with a hash. ErrBusy where no slot becomes free.
func (h *hasher) matches(ctx context.Context, password, hash string) (bool, error) {
	if err := h.acquire(ctx, h.logIns); err != nil {
		return false, err
	}
	defer h.logIns.release()
	ok, err := argon2id.ComparePasswordAndHash(password, hash)
	if err != nil {
		return false, fmt.Errorf("compare password: %w", err)
	}
	return ok, nil
}

// acquire takes a slot, and counts the wait for it and its end.
func (h *hasher) acquire(ctx context.Context, of slots) error {
	h.metrics.hashesWaiting.Inc()
	defer h.metrics.hashesWaiting.Dec()
	err := of.acquire(ctx)
	if errors.Is(err, ErrBusy) {
		h.metrics.hashesRefused.Inc()
	}
	return err
}

// slots holds an element for each hash being made.
type slots chan struct{}

// acquire takes a slot, waiting up to maxHashWait for one; then ErrBusy.
func (s slots) acquire(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, maxHashWait, ErrBusy)
	defer cancel()
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s slots) release() {
	<-s
}
