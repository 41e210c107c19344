package auth

import (
	"crypto/sha256"

	lru "github.com/hashicorp/golang-lru/v2"
)

// maxVerified bounds the tokens remembered, some 400 bytes each.
const maxVerified = 20_000

// verifiedTokens remembers, by a token's hash, what tokens with a good signature say, so that
// a client's token is decoded and its signature computed once, and not with each request. A
// token never says anything else. Each request checks the token's time and its session.
type verifiedTokens = lru.Cache[[sha256.Size]byte, accessClaims]

func newVerifiedTokens() *verifiedTokens {
	tokens, _ := lru.New[[sha256.Size]byte, accessClaims](maxVerified) // refuses only a size below 1
	return tokens
}
