package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/alexedwards/argon2id"
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
// golang.org/x/crypto/argon2 takes no buffer (golang.org/issue/36634), so each hash leaves
// one as garbage. The garbage collector starts anew when the heap has doubled, GOGC's 100 %,
// or earlier under GOMEMLIMIT: the hashes, with those that end while it works, take somewhat
// more than twice their share at most.
const hashShare = 4

// countSlots answers how many log-ins and sign-ups may hash at once, at least one each:
// together fewer than there are processors, and no more than memory, in bytes, has room for.
// Three of four are for log-ins.
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

// CheckPassword answers a Fault unless password is fit to be one.
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

// preparePassword answers the form in which a password is hashed and compared, the same
// for every keyboard and system that types it: an OpaqueString (RFC 8265, section 4.2),
// which is in NFC and has no other space than that of ASCII.
func preparePassword(password string) (string, error) {
	return precis.OpaqueString.String(password)
}

// hasher hashes and compares passwords, not too many at once: a flood of log-ins or
// sign-ups takes neither all memory nor all processors, and a flood of the one keeps the
// other from nothing.
type hasher struct {
	logIns  slots
	signUps slots
	nobodys string
}

// nobodys is the hash of a password that nobody has. An unknown email is
// compared with it, and so takes the time that a known one takes.
var nobodys = sync.OnceValues(func() (string, error) {
	return argon2id.CreateHash(rand.Text(), hashParams)
})

func newHasher() (*hasher, error) {
	nobodys, err := nobodys()
	if err != nil {
		return nil, fmt.Errorf("hash nobody's password: %w", err)
	}
	logIns, signUps := countSlots(min(runtime.GOMAXPROCS(0), runtime.NumCPU()), memoryLimit())
	return &hasher{logIns: make(slots, logIns), signUps: make(slots, signUps), nobodys: nobodys}, nil
}

// hash makes the hash that a sign-up stores. ErrBusy where all slots stay taken.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.signUps.acquire(ctx); err != nil {
		return "", err
	}
	defer h.signUps.release()
	hash, err := argon2id.CreateHash(password, hashParams)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return hash, nil
}

// matches compares the password of a log-in. ErrBusy where all slots stay taken.
func (h *hasher) matches(ctx context.Context, password, hash string) (bool, error) {
	if err := h.logIns.acquire(ctx); err != nil {
		return false, err
	}
	defer h.logIns.release()
	ok, err := argon2id.ComparePasswordAndHash(password, hash)
	if err != nil {
		return false, fmt.Errorf("compare password: %w", err)
	}
	return ok, nil
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
