package api

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

// A token that is missing, forged, of another use, expired or revoked opens no route. Every such token
// gets the same answer, before the API looks at anything else of the request. One function reads the
// token for all routes: each bad token goes to one in tokenShare of them.
func TestSecurity_BadToken(t *testing.T) {
	t.Parallel()
	const tokenShare = 3
	s := start(t)
	v := newVictim(t, s)
	tokens := badTokens(t, s, v)
	before := v.state()
	names := slices.Sorted(maps.Keys(tokens))
	for i, o := range secured(t) {
		t.Run(o.String(), func(t *testing.T) {
			c := s.anonymous(t)
			p := o.request(t, v.theirs).withID()
			want := p.send(c).problemOf(http.StatusUnauthorized, "unauthenticated", p.method)
			for n, name := range names {
				if (n+i)%tokenShare != 0 {
					continue
				}
				a := p.with("Authorization", tokens[name]).send(c)
				if a.status != want.status || string(a.body) != string(want.body) || a.header.Get("WWW-Authenticate") != "Bearer" {
					t.Errorf("%s: got %s\nwant %s", name, a, want)
				}
			}
			for name, other := range map[string]probe{
				"InTheQuery":    {target: p.target + queryMark(p.target) + "access_token=" + v.token},
				"InACookie":     {headers: []string{"Cookie", "access_token=" + v.token + "; Authorization=Bearer " + v.token}},
				"OtherHeader":   {headers: []string{"X-Authorization", "Bearer " + v.token, "Proxy-Authorization", "Bearer " + v.token}},
				"OfAForwarder":  {headers: []string{"X-Forwarded-User", v.userID.String(), "X-User-Id", v.userID.String(), "X-Forwarded-For", "127.0.0.1"}},
				"FaultyBody":    {body: "{"},
				"FaultyQuery":   {target: p.target + queryMark(p.target) + "x=1&x=1"},
				"FaultyType":    {headers: []string{"Content-Type", "text/plain"}},
				"FaultyKey":     {headers: []string{headerKey, strings.Repeat("x", 256)}},
				"UnknownObject": {target: o.request(t, nothing()).target},
			} {
				if other.target == "" {
					other.target = p.target
				}
				if other.body == "" {
					other.body = p.body
				}
				other.method, other.headers = p.method, append(p.withID().headers, other.headers...)
				if a := other.send(c); a.status != want.status || string(a.body) != string(want.body) {
					t.Errorf("%s: got %s\nwant %s", name, a, want)
				}
			}
		})
	}
	v.wantUnharmed(before)
	v.get("/v1/users/me").want(http.StatusOK) // the token itself is good
}

func queryMark(target string) string {
	if strings.Contains(target, "?") {
		return "&"
	}
	return "?"
}

// problemOf is problem, also for the answer to a HEAD, which has no body.
func (a answer) problemOf(status int, code, method string) answer {
	a.t.Helper()
	if method == http.MethodHead {
		return a.want(status)
	}
	return a.problem(status, code)
}

// with adds a header to the request.
func (p probe) with(name, value string) probe {
	p.headers = append(append([]string{}, p.headers...), name, value)
	return p
}

// badTokens returns values of Authorization, by what is wrong with them.
func badTokens(t *testing.T, s *server, v victim) map[string]string {
	t.Helper()
	header := func(edits ...any) map[string]any { // of a good token, but for these names and values
		h := map[string]any{"alg": "HS256", "typ": "at+jwt", "kid": firstKey.ID}
		for i := 0; i < len(edits); i += 2 {
			h[edits[i].(string)] = edits[i+1]
		}
		return h
	}
	claims := func(edits ...any) jwt.MapClaims {
		c := v.claims()
		for i := 0; i < len(edits); i += 2 {
			c[edits[i].(string)] = edits[i+1]
			if edits[i+1] == nil {
				delete(c, edits[i].(string))
			}
		}
		return c
	}
	own := firstKey.Secret
	head, payload, signature := cut(t, v.token)
	stranger := s.user(t)
	_, strangersPayload, _ := cut(t, stranger.token)
	bad := map[string]string{
		"NoScheme":         v.token,
		"NoToken":          "Bearer",
		"OnlyASpace":       "Bearer ",
		"Basic":            "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+v.token)),
		"Two":              "Bearer " + v.token + " " + v.token,
		"List":             "Bearer " + v.token + ", Bearer " + v.token,
		"TokenScheme":      "Token " + v.token,
		"Tab":              "Bearer\t" + v.token,
		"Quoted":           `Bearer "` + v.token + `"`,
		"RefreshToken":     "Bearer pbr_pVQyW3xDk8mZr0tYbN5uJ7hGfE2cA9sL4iO6wXqRvTk",
		"UserID":           "Bearer " + v.userID.String(),
		"null":             "Bearer null",
		"OnlyDots":         "Bearer ..",
		"NoSignature":      "Bearer " + head + "." + payload + ".",
		"TwoParts":         "Bearer " + head + "." + payload,
		"FourParts":        "Bearer " + v.token + "." + signature,
		"FiveParts":        "Bearer " + v.token + ".a.b",
		"Truncated":        "Bearer " + v.token[:len(v.token)-1],
		"Padded":           "Bearer " + v.token + "=",
		"OthersPayload":    "Bearer " + head + "." + strangersPayload + "." + signature,
		"Long":             "Bearer " + v.token + strings.Repeat("A", 8000),
		"StandardAlphabet": "Bearer " + forge(t, header(), claims("x", "\u00ff\u00ff\u00ff???>>>"), own, base64.RawStdEncoding),
	}
	forged := map[string]string{
		"AlgNone":        forge(t, header("alg", "none"), claims(), nil, base64.RawURLEncoding),
		"AlgNoneCapital": forge(t, header("alg", "None"), claims(), own, base64.RawURLEncoding),
		"AlgEmpty":       forge(t, header("alg", ""), claims(), own, base64.RawURLEncoding),
		"AlgLowerCase":   forge(t, header("alg", "hs256"), claims(), own, base64.RawURLEncoding),
		"AlgAList":       forge(t, header("alg", []string{"HS256"}), claims(), own, base64.RawURLEncoding),
		"AlgHS512":       signToken(t, jwt.SigningMethodHS512, firstKey, claims()),
		"AlgRS256":       signRSA(t, claims()),
		"OtherKey":       forge(t, header(), claims(), secondKey.Secret, base64.RawURLEncoding),
		"EmptyKey":       forge(t, header(), claims(), []byte{}, base64.RawURLEncoding),
		"KeyIsItsName":   forge(t, header(), claims(), []byte(firstKey.ID), base64.RawURLEncoding),
		"UnknownKid":     forge(t, header("kid", "zero"), claims(), own, base64.RawURLEncoding),
		"KidAPath":       forge(t, header("kid", "../../../dev/null"), claims(), []byte{}, base64.RawURLEncoding),
		"KidSQL":         forge(t, header("kid", "x' UNION SELECT 'k"), claims(), []byte("k"), base64.RawURLEncoding),
		"KidANumber":     forge(t, header("kid", 1), claims(), own, base64.RawURLEncoding),
		"KidNull":        forge(t, header("kid", nil), claims(), []byte{}, base64.RawURLEncoding),
		"TypJWT":         forge(t, header("typ", "JWT"), claims(), own, base64.RawURLEncoding),
		"TypNull":        forge(t, header("typ", nil), claims(), own, base64.RawURLEncoding),
		"JKU":            forge(t, header("jku", "https://evil.example/keys"), claims(), own, base64.RawURLEncoding),
		"JWK":            forge(t, header("jwk", map[string]string{"kty": "oct", "k": "AAAA"}), claims(), []byte{0, 0, 0}, base64.RawURLEncoding),
		"X5U":            forge(t, header("x5u", "file:///etc/passwd"), claims(), own, base64.RawURLEncoding),
		"Crit":           forge(t, header("crit", []string{"exp"}), claims(), own, base64.RawURLEncoding),
		"B64":            forge(t, header("b64", false, "crit", []string{"b64"}), claims(), own, base64.RawURLEncoding),
		"Expired":        forge(t, header(), claims("exp", time.Now().Add(-time.Second).Unix()), own, base64.RawURLEncoding),
		"ExpiryAString":  forge(t, header(), claims("exp", "9999999999"), own, base64.RawURLEncoding),
		"ExpiryHuge":     forge(t, header(), claims("exp", 1e300), own, base64.RawURLEncoding),
		"NotYet":         forge(t, header(), claims("nbf", time.Now().Add(time.Hour).Unix()), own, base64.RawURLEncoding),
		"OtherIssuer":    forge(t, header(), claims("iss", "evil"), own, base64.RawURLEncoding),
		"OtherAudience":  forge(t, header(), claims("aud", "evil"), own, base64.RawURLEncoding),
		"NoSuchSession":  forge(t, header(), claims("sid", uuid.New()), own, base64.RawURLEncoding),
		"SessionNil":     forge(t, header(), claims("sid", uuid.Nil), own, base64.RawURLEncoding),
		"SubjectNil":     forge(t, header(), claims("sub", uuid.Nil), own, base64.RawURLEncoding),
		"Revoked":        revokedToken(t, s, v),
	}
	for _, claim := range []string{"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"} {
		forged["No "+claim] = forge(t, header(), claims(claim, nil), own, base64.RawURLEncoding)
	}
	for name, token := range forged {
		bad[name] = "Bearer " + token
	}
	good := "Bearer " + forge(t, header(), claims(), own, base64.RawURLEncoding)
	v.get("/v1/users/me", "Authorization", good).want(http.StatusOK) // so each is refused for what its name says
	return bad
}

func cut(t *testing.T, token string) (head, payload, signature string) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	return parts[0], parts[1], parts[2]
}

// forge signs any header and claims with HMAC-SHA256, or with nothing where the secret is nil.
func forge(t *testing.T, header map[string]any, claims jwt.MapClaims, secret []byte, encoding *base64.Encoding) string {
	t.Helper()
	maps.DeleteFunc(header, func(_ string, value any) bool { return value == nil })
	var parts []string
	for _, part := range []any{header, claims} {
		text, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, encoding.EncodeToString(text))
	}
	signed := strings.Join(parts, ".")
	if secret == nil {
		return signed + "."
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + encoding.EncodeToString(mac.Sum(nil))
}

func signRSA(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	const bits = 2048
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
	token.Header["typ"], token.Header["kid"] = "at+jwt", firstKey.ID
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// revokedToken is a good token, but for its session.
func revokedToken(t *testing.T, s *server, v victim) string {
	t.Helper()
	claims := v.claims()
	ledgertest.Exec(t, s.pool, `UPDATE sessions SET revoked_at = now() WHERE id = $1`, claims["sid"])
	return signToken(t, jwt.SigningMethodHS256, firstKey, claims)
}
