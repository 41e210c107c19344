package auth

import (
	"crypto/sha256"
	"sync"
)

// maxVerified bounds the tokens remembered: some 300 bytes each.
const maxVerified = 20_000

// verifiedTokens remembers what tokens with a good signature say, so that a client's
// token is decoded and its signature computed once, and not with each request. A token
// never says anything else; whether its time has passed and its session is alive is
// asked each time.
type verifiedTokens struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]accessClaims // guarded by mu; by the token's hash
}

func newVerifiedTokens() *verifiedTokens {
	return &verifiedTokens{seen: map[[sha256.Size]byte]accessClaims{}}
}

func (v *verifiedTokens) claims(hash [sha256.Size]byte) (claims accessClaims, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	claims, known = v.seen[hash]
	return claims, known
}

func (v *verifiedTokens) keep(hash [sha256.Size]byte, claims accessClaims) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.seen) >= maxVerified { // forgetting costs a verification each, and is simpler than choosing
		clear(v.seen)
	}
	v.seen[hash] = claims
}
