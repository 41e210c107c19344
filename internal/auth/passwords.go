package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unicode/utf8"

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

// maxHashes bounds the passwords hashed at once, so that a flood of log-ins
// takes neither all memory (19 MiB each) nor more processors than there are.
func maxHashes() int {
	return max(2, runtime.GOMAXPROCS(0))
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

// hasher hashes and compares passwords, not too many at once.
type hasher struct {
	slots   chan struct{} // holds an element for each hash being made
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
	return &hasher{slots: make(chan struct{}, maxHashes()), nobodys: nobodys}, nil
}

func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.acquire(ctx); err != nil {
		return "", err
	}
	defer h.release()
	hash, err := argon2id.CreateHash(password, hashParams)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return hash, nil
}

func (h *hasher) matches(ctx context.Context, password, hash string) (bool, error) {
	if err := h.acquire(ctx); err != nil {
		return false, err
	}
	defer h.release()
	ok, err := argon2id.ComparePasswordAndHash(password, hash)
	if err != nil {
		return false, fmt.Errorf("compare password: %w", err)
	}
	return ok, nil
}

// acquire takes a slot, waiting up to maxHashWait for one; then ErrBusy.
func (h *hasher) acquire(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, maxHashWait, ErrBusy)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *hasher) release() {
	<-h.slots
}
