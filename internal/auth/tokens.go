package auth

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	// accessTokenLife is how long an access token can be used.
	accessTokenLife = 15 * time.Minute

	// accessTokenType distinguishes an access token from any other JWT that a key may sign (RFC
	// 8725, section 3.11; RFC 9068, section 2.1).
	accessTokenType = "at+jwt"

	// maxClockSkew is how far behind the clock of the next primary may be after a failover. nbf is
	// earlier by it; exp is exact.
	maxClockSkew = 30 * time.Second

	// maxTokenLen bounds, in bytes, what is decoded before the signature is checked.
	maxTokenLen = 2048

	minSecretLen = 32 // bytes, RFC 7518, section 3.2

	defaultName = "passbook" // of issuer and audience
)

// The faults of a token that have their own reason in the metric.
var (
	errUnknownKey  = errors.New("unknown kid")
	errNotYetValid = errors.New("token not valid yet")
	errExpired     = errors.New("token expired")
)

// signingMethod is the one algorithm (RFC 8725, section 3.1).
var signingMethod = jwt.SigningMethodHS256

// Key signs and verifies access tokens.
type Key struct {
	ID     string // the tokens' kid
	Secret []byte // at least 32 bytes
}

// signer makes access tokens and verifies them.
type signer struct {
	key      Key               // that signs
	secrets  map[string][]byte // that verify, by kid
	issuer   string
	audience string
	parser   *jwt.Parser
	verified *verifiedTokens
}

func newSigner(cfg Config) (*signer, error) {
	if err := checkKeys(cfg.Keys); err != nil {
		return nil, err
	}
	s := &signer{
		key:      cfg.Keys[0],
		secrets:  make(map[string][]byte, len(cfg.Keys)),
		issuer:   cfg.Issuer,
		audience: cfg.Audience,
		verified: newVerifiedTokens(),
	}
	if s.issuer == "" {
		s.issuer = defaultName
	}
	if s.audience == "" {
		s.audience = defaultName
	}
	for _, key := range cfg.Keys {
		s.secrets[key.ID] = key.Secret
	}
	s.parser = jwt.NewParser(
		jwt.WithValidMethods([]string{signingMethod.Alg()}),
		jwt.WithIssuer(s.issuer),
		jwt.WithAudience(s.audience),
		jwt.WithStrictDecoding(),
	)
	return s, nil
}

// checkKeys returns an error that names every fault, and no secret.
func checkKeys(keys []Key) error {
	var faults []error
	if len(keys) == 0 {
		faults = append(faults, errors.New("no key"))
	}
	seen := make(map[string]bool, len(keys))
	for i, key := range keys {
		if key.ID == "" {
			faults = append(faults, fmt.Errorf("key %d has no id", i+1))
		}
		if seen[key.ID] {
			faults = append(faults, fmt.Errorf("key id %q is repeated", key.ID))
		}
		if len(key.Secret) < minSecretLen {
			faults = append(faults, fmt.Errorf("key %q has %d bytes, fewer than %d", key.ID, len(key.Secret), minSecretLen))
		} else if isRepeated(key.Secret) {
			faults = append(faults, fmt.Errorf("key %q is one byte repeated, not random", key.ID))
		}
		seen[key.ID] = true
	}
	return errors.Join(faults...)
}

// isRepeated reports whether the secret is a placeholder: one byte repeated.
func isRepeated(secret []byte) bool {
	return len(secret) > 0 && bytes.Count(secret, secret[:1]) == len(secret)
}

// sign makes the access token of a session, valid from now, by Postgres's clock.
func (s *signer) sign(identity Identity, now time.Time) (string, error) {
	token := jwt.NewWithClaims(signingMethod, &accessClaims{
		Issuer:    s.issuer,
		Audience:  s.audience,
		UserID:    identity.UserID,
		SessionID: identity.SessionID,
		TokenID:   uuid.NewString(),
		IssuedAt:  now.Unix(),
		NotBefore: now.Add(-maxClockSkew).Unix(),
		ExpiresAt: now.Add(accessTokenLife).Unix(),
	})
	token.Header["typ"] = accessTokenType
	token.Header["kid"] = s.key.ID
	signed, err := token.SignedString(s.key.Secret)
	if err != nil {
		return "", fmt.Errorf("sign access token: %w", err)
	}
	return signed, nil
}

// verify returns the claims of an access token that one of the keys signed; checkTime checks its
// time. For any other token it returns an error with the reason, for the log.
func (s *signer) verify(accessToken string) (accessClaims, error) {
	if len(accessToken) > maxTokenLen {
		return accessClaims{}, errors.New("token too long")
	}
	if strings.ContainsAny(accessToken, "\r\n") { // encoding/base64 would skip them
		return accessClaims{}, errors.New("line break in token")
	}
	hash := sha256.Sum256([]byte(accessToken))
	if known, ok := s.verified.Get(hash); ok {
		return known, nil
	}
	var claims accessClaims
	if _, err := s.parser.ParseWithClaims(accessToken, &claims, s.secret); err != nil {
		return accessClaims{}, err
	}
	s.verified.Add(hash, claims)
	return claims, nil
}

// secret checks a token's header and returns the secret that it names. It refuses a header with any
// other field: RFC 7515, section 4.1.11, requires that for crit, and jwt does not check it.
func (s *signer) secret(token *jwt.Token) (any, error) {
	if token.Header["typ"] != accessTokenType {
		return nil, errors.New("wrong typ")
	}
	if len(token.Header) != 3 { // alg, kid, typ
		return nil, errors.New("unexpected header")
	}
	kid, _ := token.Header["kid"].(string)
	secret, ok := s.secrets[kid]
	if !ok {
		return nil, errUnknownKey
	}
	return secret, nil
}

// accessClaims are the claims of an access token. Their types are plain; jwt.RegisteredClaims allows
// every form of RFC 7519. Every request decodes them, and plain types take a third off
// BenchmarkVerify.
type accessClaims struct {
	Issuer    string    `json:"iss"`
	Audience  string    `json:"aud"`
	UserID    uuid.UUID `json:"sub"`
	SessionID uuid.UUID `json:"sid"`
	TokenID   string    `json:"jti"`
	IssuedAt  int64     `json:"iat"` // this and the next two in seconds since 1970
	NotBefore int64     `json:"nbf"`
	ExpiresAt int64     `json:"exp"`
}

func (c *accessClaims) identity() Identity {
	return Identity{UserID: c.UserID, SessionID: c.SessionID}
}

// checkTime returns an error for a token that is not valid yet, or has expired.
func (c *accessClaims) checkTime(now time.Time) error {
	switch at := now.Unix(); {
	case at < c.NotBefore:
		return errNotYetValid
	case at >= c.ExpiresAt:
		return errExpired
	}
	return nil
}

// Validate is called by jwt after the signature check. It refuses a token without the claims that
// jwt itself does not require.
func (c *accessClaims) Validate() error {
	if c.UserID == uuid.Nil || c.SessionID == uuid.Nil || c.TokenID == "" {
		return errors.New("sub, sid or jti missing")
	}
	if c.IssuedAt == 0 || c.NotBefore == 0 || c.ExpiresAt == 0 {
		return errors.New("iat, nbf or exp missing")
	}
	return nil
}

// The other methods of jwt.ClaimsValidator: jwt compares their results with s.parser's options. They
// return no times: jwt would compare them with the clock of this process.

func (c *accessClaims) GetIssuer() (string, error) { return c.Issuer, nil }

func (c *accessClaims) GetAudience() (jwt.ClaimStrings, error) {
	return jwt.ClaimStrings{c.Audience}, nil
}

func (c *accessClaims) GetSubject() (string, error) { return c.UserID.String(), nil }

func (c *accessClaims) GetIssuedAt() (*jwt.NumericDate, error) { return nil, nil }

func (c *accessClaims) GetNotBefore() (*jwt.NumericDate, error) { return nil, nil }

func (c *accessClaims) GetExpirationTime() (*jwt.NumericDate, error) { return nil, nil }
