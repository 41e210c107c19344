package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// object is a JSON object; a nil value in a change of it takes the name away.
type object = map[string]any

func TestVerify(t *testing.T) {
	t.Parallel()
	s, identity, now := newTestSigner(t), testIdentity(), newClock().Now()
	tests := map[string]struct {
		header, claims object            // what differs
		method         jwt.SigningMethod // HS256 where nil
		key            any               // the key k1 where nil
		ok             bool
	}{
		"OK":                   {ok: true},
		"OK/OtherKey":          {header: object{"kid": "k2"}, key: testSecret(2), ok: true},
		"OK/JustBeforeExpiry":  {claims: object{"exp": now.Unix() + 1}, ok: true},
		"Kid/OfTheOtherKey":    {header: object{"kid": "k2"}},
		"Kid/Unknown":          {header: object{"kid": "k3"}},
		"Kid/Missing":          {header: object{"kid": nil}},
		"Kid/NotAString":       {header: object{"kid": 1}},
		"Key/Unknown":          {key: testSecret(3)},
		"Alg/None":             {header: object{"alg": "none"}, method: jwt.SigningMethodNone, key: jwt.UnsafeAllowNoneSignatureType},
		"Alg/HS384":            {header: object{"alg": "HS384"}, method: jwt.SigningMethodHS384},
		"Alg/HS512":            {header: object{"alg": "HS512"}, method: jwt.SigningMethodHS512},
		"Alg/RS256":            {header: object{"alg": "RS256"}},
		"Alg/WrittenOtherwise": {header: object{"alg": "hs256"}},
		"Alg/Missing":          {header: object{"alg": nil}},
		"Typ/JWT":              {header: object{"typ": "JWT"}},
		"Typ/Missing":          {header: object{"typ": nil, "cty": "x"}},
		"Header/Crit":          {header: object{"crit": []string{"exp"}}},
		"Header/Jwk":           {header: object{"jwk": object{}}},
		"Exp/Missing":          {claims: object{"exp": nil}},
		"Exp/Now":              {claims: object{"exp": now.Unix()}},
		"Exp/NotANumber":       {claims: object{"exp": "never"}},
		"Nbf/Missing":          {claims: object{"nbf": nil}},
		"Nbf/Later":            {claims: object{"nbf": now.Unix() + 1}},
		"Iat/Missing":          {claims: object{"iat": nil}},
		"Jti/Missing":          {claims: object{"jti": nil}},
		"Iss/Missing":          {claims: object{"iss": nil}},
		"Iss/Other":            {claims: object{"iss": "other"}},
		"Aud/Missing":          {claims: object{"aud": nil}},
		"Aud/Other":            {claims: object{"aud": "other"}},
		"Aud/Several":          {claims: object{"aud": []string{"passbook", "other"}}},
		"Sub/Missing":          {claims: object{"sub": nil}},
		"Sub/NotAUUID":         {claims: object{"sub": "ann"}},
		"Sid/Missing":          {claims: object{"sid": nil}},
		"Sid/NotAUUID":         {claims: object{"sid": "1"}},
		"Length/TooLong":       {claims: object{"jti": strings.Repeat("1", maxTokenLen)}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.method == nil {
				tt.method = jwt.SigningMethodHS256
			}
			if tt.key == nil {
				tt.key = testSecret(1)
			}
			token := sign(t, tt.method, tt.key, changed(testHeader(), tt.header), changed(testClaims(), tt.claims))
			got, err := s.verifyAt(token, now)
			switch {
			case tt.ok && (err != nil || got != identity):
				t.Errorf("got %v, %v, want %v", got, err, identity)
			case !tt.ok && (err == nil || got != Identity{}):
				t.Errorf("got %v, %v, want a refusal", got, err)
			}
		})
	}
}

// Of a token's many writings only the one that was signed is good.
func TestVerify_Mangled(t *testing.T) {
	t.Parallel()
	s := newTestSigner(t)
	good, err := s.sign(testIdentity(), newClock().Now())
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	tests := map[string]string{
		"Empty":        "",
		"Dots":         "..",
		"NoSignature":  parts[0] + "." + parts[1] + ".",
		"TwoParts":     parts[0] + "." + parts[1],
		"FourParts":    good + "." + parts[2],
		"OtherPayload": parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("{}")) + "." + parts[2],
		"NullPayload":  parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("null")) + "." + parts[2],
		"Padding":      good + "=",
		"LineBreak":    good + "\n",
		"Bearer":       "Bearer " + good,
		"TrailingBits": good[:len(good)-1] + string(nextBase64(good[len(good)-1])),
		"OtherLetters": "+" + good,
	}
	for name, token := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := s.verifyAt(token, newClock().Now()); err == nil || got != (Identity{}) {
				t.Errorf("got %v, %v, want a refusal", got, err)
			}
		})
	}
}

func TestSign(t *testing.T) {
	t.Parallel()
	s, identity, now := newTestSigner(t), testIdentity(), newClock().Now()
	token, err := s.sign(identity, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(token) > maxTokenLen/2 {
		t.Errorf("a token has %d bytes, too near to maxTokenLen", len(token))
	}
	parts := strings.Split(token, ".")
	var header, claims object
	decodeJSON(t, parts[0], &header)
	decodeJSON(t, parts[1], &claims)
	if want := testHeader(); !maps.Equal(header, want) {
		t.Errorf("header: got %v, want %v", header, want)
	}
	if jti, _ := claims["jti"].(string); uuid.Validate(jti) != nil {
		t.Errorf("jti is %q", jti)
	}
	delete(claims, "jti")
	want := object{
		"iss": "passbook", "aud": "passbook", "sub": identity.UserID.String(), "sid": identity.SessionID.String(),
		"iat": float64(now.Unix()), "nbf": float64(now.Add(-maxClockSkew).Unix()), "exp": float64(now.Unix() + 900),
	}
	if !maps.Equal(claims, want) {
		t.Errorf("claims: got %v, want %v", claims, want)
	}
}

// A key is replaced without a session noticing: it joins the others, then it
// signs, then the old one goes.
func TestVerify_KeysRotate(t *testing.T) {
	t.Parallel()
	clock := newClock()
	before, after := Key{"old", testSecret(1)}, Key{"new", testSecret(2)}
	newSigner := func(keys ...Key) *signer {
		s, err := newSigner(Config{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	onlyOld, joined, signs, onlyNew := newSigner(before), newSigner(before, after), newSigner(after, before), newSigner(after)
	tests := map[string]struct {
		from, to *signer
		ok       bool
	}{
		"OK/OldToBoth":      {onlyOld, joined, true},
		"OK/OldToNewSigner": {onlyOld, signs, true},
		"OK/JoinedToOld":    {joined, onlyOld, true},
		"OK/NewToJoined":    {signs, joined, true},
		"OK/NewToNew":       {signs, onlyNew, true},
		"Refused/OldGone":   {joined, onlyNew, false},
		"Refused/NewYet":    {signs, onlyOld, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token, err := tt.from.sign(testIdentity(), clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tt.to.verifyAt(token, clock.Now()); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

// FuzzVerify: whatever is sent, only the very token that was signed is good. It
// is the same in every process that fuzzes.
func FuzzVerify(f *testing.F) {
	s := newTestSigner(f)
	good := sign(f, signingMethod, testSecret(1), testHeader(), testClaims())
	f.Add(good)
	f.Add(good + "\n")
	f.Add(good + "=")
	f.Add(good[:len(good)-1])
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add("")
	f.Add("..")
	f.Add("e30.e30.")
	f.Add("bnVsbA.bnVsbA.bnVsbA")                                        // null.null.null
	f.Add("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiazEifQ.e30.") // alg none
	f.Fuzz(func(t *testing.T, token string) {
		identity, err := s.verifyAt(token, newClock().Now())
		if (err == nil) != (token == good) || (err != nil && identity != Identity{}) {
			t.Errorf("got %v, %v for %q", identity, err, token)
		}
	})
}

// FuzzVerifySigned: of what our key has signed, only a token of ours is good,
// held against a reading of it by plain maps.
func FuzzVerifySigned(f *testing.F) {
	s := newTestSigner(f)
	header, _ := json.Marshal(testHeader()) // maps of what JSON has: no error
	claims, _ := json.Marshal(testClaims())
	f.Add(header, claims)
	f.Add(header, []byte(`null`))
	f.Add(header, []byte(`{"exp":1e308,"nbf":-1e308,"aud":[null],"sub":{}}`))
	f.Add([]byte(`{"alg":"HS256","typ":"at+jwt","kid":{}}`), claims)
	f.Add([]byte(`{"alg":"HS256","typ":"at+jwt","kid":"k2"}`), claims)
	f.Add([]byte(`{"alg":"HS256","typ":"at+jwt","kid":"k1","crit":[]}`), claims)
	f.Add([]byte(`{"alg":"none","typ":"at+jwt","kid":"k1"}`), claims)
	f.Add([]byte(`null`), claims)
	now := newClock().Now().Unix()
	for _, change := range []object{{"exp": now}, {"nbf": now + 1}, {"iss": "x"}, {"aud": nil}, {"sub": uuid.Nil}, {"sid": 7}, {"jti": ""}, {"iat": 0}} {
		changed, _ := json.Marshal(changed(testClaims(), change))
		f.Add(header, changed)
	}
	f.Fuzz(func(t *testing.T, header, claims []byte) {
		text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
		signature, err := signingMethod.Sign(text, testSecret(1))
		if err != nil {
			t.Fatal(err)
		}
		identity, err := s.verifyAt(text+"."+base64.RawURLEncoding.EncodeToString(signature), newClock().Now())
		switch {
		case err != nil && identity != Identity{}:
			t.Errorf("refused %q, yet it is %v", claims, identity)
		case err == nil && (identity.UserID == uuid.Nil || identity.SessionID == uuid.Nil):
			t.Errorf("accepted %q as %v", claims, identity)
		case err == nil:
			if wrong := whatIsWrong(header, claims, identity, now); wrong != "" {
				t.Errorf("accepted %q %q, though %s", header, claims, wrong)
			}
		}
	})
}

// whatIsWrong returns why a token signed with k1 must not pass at the time now.
// Names that encoding/json reads in any case are beyond it.
func whatIsWrong(header, claims []byte, identity Identity, now int64) string {
	var h, c object
	if json.Unmarshal(header, &h) != nil || !maps.Equal(h, testHeader()) {
		return "its header is another"
	}
	decoder := json.NewDecoder(bytes.NewReader(claims))
	decoder.UseNumber()
	if decoder.Decode(&c) != nil {
		return "its claims are no object"
	}
	for name := range c {
		if strings.ContainsFunc(name, func(r rune) bool { return r >= 'A' && r <= 'Z' || r > '~' }) {
			return ""
		}
	}
	for name, want := range map[string]uuid.UUID{"sub": identity.UserID, "sid": identity.SessionID} {
		text, _ := c[name].(string)
		if got, err := uuid.Parse(text); err != nil || got != want {
			return fmt.Sprintf("%s is %q, read as %s", name, text, want)
		}
	}
	times := map[string]int64{}
	for _, name := range []string{"iat", "nbf", "exp"} {
		number, _ := c[name].(json.Number)
		times[name], _ = number.Int64() // 0 is never good
	}
	switch {
	case c["iss"] != "passbook" || c["aud"] != "passbook":
		return "it is another's or for another"
	case c["jti"] == nil || c["jti"] == "":
		return "it has no jti"
	case times["iat"] == 0 || times["nbf"] == 0 || times["exp"] == 0:
		return "a time is missing"
	case times["exp"] <= now || times["nbf"] > now:
		return "its time has passed, or not come"
	}
	return ""
}

// A token that is remembered is good for no longer than it says, and for no other.
func TestVerifyKnown(t *testing.T) {
	t.Parallel()
	s, identity, now := newTestSigner(t), testIdentity(), newClock().Now()
	token, err := s.sign(identity, now)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := s.verifyAt(token, now); err != nil || got != identity {
			t.Errorf("got %+v, %v; want %+v", got, err, identity)
		}
	}
	if s.verified.Len() != 1 {
		t.Fatalf("%d tokens are remembered, want one", s.verified.Len())
	}
	if _, err := s.verifyAt(token, now.Add(accessTokenLife)); err == nil {
		t.Error("it is good for ever")
	}
	for i, c := range []byte(token) {
		forged := []byte(token)
		forged[i] = 'A'
		if c == 'A' {
			forged[i] = 'B'
		}
		if _, err := s.verify(string(forged)); err == nil {
			t.Errorf("it is good with %q at %d, too", forged[i], i)
		}
	}
	if s.verified.Len() != 1 {
		t.Errorf("%d tokens are remembered, forged ones among them", s.verified.Len())
	}
	for i := range maxVerified {
		s.verified.Add([32]byte{byte(i), byte(i >> 8), byte(i >> 16), 1}, accessClaims{})
	}
	if n := s.verified.Len(); n > maxVerified {
		t.Errorf("%d tokens are remembered", n)
	}
	if got, err := s.verifyAt(token, now); err != nil || got != identity {
		t.Errorf("once forgotten: got %+v, %v; want %+v", got, err, identity)
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, bench := range []struct {
		name  string
		known bool
	}{{"New", false}, {"Known", true}} {
		b.Run(bench.name, func(b *testing.B) {
			s := newTestSigner(b)
			token, err := s.sign(testIdentity(), newClock().Now())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if !bench.known {
					s.verified.Purge()
				}
				if _, err := s.verify(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func newTestSigner(tb testing.TB) *signer {
	tb.Helper()
	s, err := newSigner(Config{Keys: []Key{{"k1", testSecret(1)}, {"k2", testSecret(2)}}})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// verifyAt does to a token all that Authenticate does before the session's
// life counts.
func (s *signer) verifyAt(accessToken string, now time.Time) (Identity, error) {
	claims, err := s.verify(accessToken)
	if err != nil {
		return claims.identity(), err
	}
	if err := claims.checkTime(now); err != nil {
		return Identity{}, err
	}
	return claims.identity(), nil
}

func testIdentity() Identity {
	return Identity{
		UserID:    uuid.MustParse("01900000-0000-7000-8000-000000000001"),
		SessionID: uuid.MustParse("01900000-0000-7000-8000-000000000002"),
	}
}

func testHeader() object {
	return object{"alg": "HS256", "typ": "at+jwt", "kid": "k1"}
}

func testClaims() object {
	identity, now := testIdentity(), newClock().Now().Unix()
	return object{
		"iss": "passbook", "aud": "passbook", "sub": identity.UserID, "sid": identity.SessionID, "jti": "1",
		"iat": now, "nbf": now, "exp": now + 900,
	}
}

func sign(tb testing.TB, method jwt.SigningMethod, key any, header, claims object) string {
	tb.Helper()
	token := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	token.Header = header
	signed, err := token.SignedString(key)
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

func changed(base, change object) object {
	result := maps.Clone(base)
	maps.Copy(result, change)
	maps.DeleteFunc(result, func(_ string, value any) bool { return value == nil })
	return result
}

// nextBase64 is a letter that differs from c in the lowest bit, which the last
// letter of a signature does not use.
func nextBase64(c byte) byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return letters[strings.IndexByte(letters, c)^1]
}

func decodeJSON(tb testing.TB, segment string, into any) {
	tb.Helper()
	text, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		tb.Fatal(err)
	}
}
