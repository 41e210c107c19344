package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/auth"
)

type userJSON struct {
	ID        string `json:"id"`
	Email     string `json:"email"`
	CreatedAt string `json:"created_at"`
}

type tokensJSON struct {
	AccessToken      string `json:"access_token"`
	TokenType        string `json:"token_type"`
	ExpiresIn        int64  `json:"expires_in"`
	RefreshToken     string `json:"refresh_token"`
	RefreshExpiresIn int64  `json:"refresh_expires_in"`
}

const (
	annsCredentials = `{"email":"Ann@Example.com","password":"correct horse"}`
)

// signUp makes the user Ann.
func signUp(c client) userJSON {
	c.t.Helper()
	return decode[userJSON](c.post("/v1/users", annsCredentials).want(http.StatusCreated))
}

func logIn(c client) tokensJSON {
	c.t.Helper()
	a := c.post("/v1/sessions", annsCredentials).want(http.StatusCreated).wantHeader("Cache-Control", "no-store")
	return decode[tokensJSON](a)
}

func refreshBody(token string) string {
	return `{"refresh_token":"` + token + `"}`
}

func TestSignUp(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	user := signUp(c)
	if user.Email != "Ann@Example.com" {
		t.Errorf("email %q", user.Email)
	}
	c.token = logIn(c).AccessToken
	if me := decode[userJSON](c.get("/v1/users/me").want(http.StatusOK)); me != user {
		t.Errorf("got %+v, want %+v", me, user)
	}
	c.token = ""

	sized := func(n int, r string) string {
		return `{"email":"bob@example.com","password":"` + strings.Repeat(r, n) + `"}`
	}
	t.Run("email_taken", func(t *testing.T) {
		c.in(t).post("/v1/users", annsCredentials).problem(http.StatusConflict, "email_taken")
		c.in(t).post("/v1/users", strings.Replace(annsCredentials, "Ann@Example", "aNN@eXAMPLE", 1)).problem(http.StatusConflict, "email_taken")
	})
	t.Run("OK/International", func(t *testing.T) {
		c.in(t).post("/v1/users", `{"email":"앤@example.com","password":"열글자비밀번호입니다아"}`).want(http.StatusCreated)
	})
	t.Run("OK/LongestPassword", func(t *testing.T) {
		c.in(t).post("/v1/users", sized(128, "é")).want(http.StatusCreated)
	})
	invalid := map[string]struct {
		body   string
		faults []string
	}{
		"EveryFault":    {`{"email":"ann","password":"short","name":"Ann"}`, []string{"/email invalid_format", "/name unknown_field", "/password too_short"}},
		"Missing":       {`{}`, []string{"/email required", "/password required"}},
		"Types":         {`{"email":1,"password":null}`, []string{"/email invalid_type", "/password required"}},
		"EmailTooLong":  {`{"email":"` + strings.Repeat("a", 250) + `@b.cd","password":"correct horse"}`, []string{"/email too_long"}},
		"EmailNUL":      {`{"email":"a\u0000@example.com","password":"correct horse"}`, []string{"/email invalid_format"}},
		"EmailEmpty":    {`{"email":"","password":"correct horse"}`, []string{"/email invalid_format"}},
		"NineLetters":   {sized(9, "é"), []string{"/password too_short"}},
		"129 letters":   {sized(129, "é"), []string{"/password too_long"}},
		"EmptyPassword": {sized(0, ""), []string{"/password too_short"}},
	}
	for name, test := range invalid {
		t.Run("invalid_request/"+name, func(t *testing.T) {
			c.in(t).post("/v1/users", test.body).problem(http.StatusUnprocessableEntity, "invalid_request", test.faults...)
		})
	}
}

func TestLogIn(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	signUp(c)
	tokens := logIn(c)
	if tokens.TokenType != "Bearer" || tokens.ExpiresIn != 900 || tokens.RefreshExpiresIn != 30*24*3600 {
		t.Errorf("got %+v", tokens)
	}
	t.Run("OK/OtherCase", func(t *testing.T) {
		c.in(t).post("/v1/sessions", `{"email":"ANN@EXAMPLE.COM","password":"correct horse"}`).want(http.StatusCreated)
	})
	t.Run("invalid_credentials", func(t *testing.T) {
		wrong := c.in(t).post("/v1/sessions", `{"email":"ann@example.com","password":"wrong horse"}`, "X-Request-Id", "r").
			problem(http.StatusUnauthorized, "invalid_credentials")
		for _, email := range []string{"bob@example.com", "not an email", "", `a\u0000`} {
			c.in(t).post("/v1/sessions", `{"email":"`+email+`","password":"wrong horse"}`, "X-Request-Id", "r").sameAs(wrong)
		}
		c.in(t).post("/v1/sessions", `{"email":"ann@example.com","password":"`+strings.Repeat("x", 60_000)+`"}`, "X-Request-Id", "r").sameAs(wrong)
	})
	t.Run("invalid_request", func(t *testing.T) {
		c.in(t).post("/v1/sessions", `{"email":true,"remember":true}`).problem(http.StatusUnprocessableEntity, "invalid_request",
			"/email invalid_type", "/password required", "/remember unknown_field")
	})
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	signUp(c)
	first := logIn(c)
	a := c.post("/v1/sessions/refresh", refreshBody(first.RefreshToken)).want(http.StatusCreated).wantHeader("Cache-Control", "no-store")
	second := decode[tokensJSON](a)
	if second.RefreshToken == first.RefreshToken || second.AccessToken == first.AccessToken {
		t.Error("a token came back")
	}
	for _, tokens := range []tokensJSON{first, second} {
		c.token = tokens.AccessToken
		c.get("/v1/users/me").want(http.StatusOK)
	}
	other := c
	other.token = logIn(c).AccessToken

	// The first one is spent. It may be used once more, by a second tab; then it counts as stolen.
	c.post("/v1/sessions/refresh", refreshBody(first.RefreshToken)).want(http.StatusCreated)
	invalid := c.post("/v1/sessions/refresh", refreshBody(first.RefreshToken), "X-Request-Id", "r").
		problem(http.StatusUnauthorized, "invalid_refresh_token").wantHeader("Www-Authenticate", "Bearer")
	c.post("/v1/sessions/refresh", refreshBody(second.RefreshToken), "X-Request-Id", "r").sameAs(invalid)
	c.post("/v1/sessions/refresh", refreshBody("no-such-token"), "X-Request-Id", "r").sameAs(invalid)
	c.post("/v1/sessions/refresh", refreshBody(""), "X-Request-Id", "r").sameAs(invalid)
	for _, tokens := range []tokensJSON{first, second} {
		c.token = tokens.AccessToken
		c.get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated")
	}
	other.get("/v1/users/me").want(http.StatusOK)
	c.post("/v1/sessions/refresh", `{"token":"x"}`).
		problem(http.StatusUnprocessableEntity, "invalid_request", "/refresh_token required", "/token unknown_field")
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	signUp(c)
	tokens := logIn(c)
	c.token = tokens.AccessToken
	c.get("/v1/users/me").want(http.StatusOK)
	for range 2 { // also when already revoked
		if a := c.post("/v1/sessions/revoke", refreshBody(tokens.RefreshToken)).want(http.StatusNoContent); len(a.body) > 0 {
			t.Errorf("a body: %s", a)
		}
	}
	c.post("/v1/sessions/revoke", refreshBody("no-such-token")).want(http.StatusNoContent)
	c.get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated")
	c.post("/v1/sessions/refresh", refreshBody(tokens.RefreshToken)).problem(http.StatusUnauthorized, "invalid_refresh_token")
	c.post("/v1/sessions/revoke", `{"refresh_token":1}`).
		problem(http.StatusUnprocessableEntity, "invalid_request", "/refresh_token invalid_type")
}

func TestChangePassword(t *testing.T) {
	t.Parallel()
	const next = "battery staple"
	change := func(c client, body string) answer {
		return c.send(http.MethodPut, "/v1/users/me/password", body, "Content-Type", "application/json")
	}
	from := func(current, next string) string {
		return `{"current_password":"` + current + `","new_password":"` + next + `"}`
	}
	s := start(t)
	c := s.anonymous(t)
	signUp(c)
	tokens, others := logIn(c), logIn(c)
	c.token = tokens.AccessToken
	other := c
	other.token = others.AccessToken
	other.get("/v1/users/me").want(http.StatusOK)

	change(c, from("wrong horse", next)).problem(http.StatusUnauthorized, "invalid_credentials").wantHeader("Www-Authenticate", "Bearer")
	change(c, from("correct horse", "short")).
		problem(http.StatusUnprocessableEntity, "invalid_request", "/new_password too_short")
	change(c, `{"new_password":7,"email":"x"}`).problem(http.StatusUnprocessableEntity, "invalid_request",
		"/current_password required", "/email unknown_field", "/new_password invalid_type")
	change(s.anonymous(t), from("correct horse", next)).problem(http.StatusUnauthorized, "unauthenticated")
	c.get("/v1/users/me").want(http.StatusOK)

	if a := change(c, from("correct horse", next)).want(http.StatusNoContent); len(a.body) > 0 {
		t.Errorf("a body: %s", a)
	}
	for _, c := range []client{c, other} {
		c.get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated")
		change(c, from("correct horse", next)).problem(http.StatusUnauthorized, "unauthenticated")
	}
	c.token = ""
	for _, tokens := range []tokensJSON{tokens, others} {
		c.post("/v1/sessions/refresh", refreshBody(tokens.RefreshToken)).problem(http.StatusUnauthorized, "invalid_refresh_token")
	}
	c.post("/v1/sessions", annsCredentials).problem(http.StatusUnauthorized, "invalid_credentials")
	again := decode[tokensJSON](c.post("/v1/sessions", strings.Replace(annsCredentials, "correct horse", next, 1)).want(http.StatusCreated))
	c.token = again.AccessToken
	c.get("/v1/users/me").want(http.StatusOK)
}

func TestUnauthenticated(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	c.get("/v1/users/me").want(http.StatusOK)
	c.get("/v1/users/me", "Authorization", "bEARER "+c.token).want(http.StatusOK)
	signed := func(method jwt.SigningMethod, key auth.Key, edit func(jwt.MapClaims)) string {
		claims := c.claims()
		edit(claims)
		return "Bearer " + signToken(t, method, key, claims)
	}
	keep := func(jwt.MapClaims) {}
	const hs256 = "HS256"
	good := jwt.GetSigningMethod(hs256)
	tests := map[string]string{
		"Missing":       "",
		"NoToken":       "Bearer",
		"OtherScheme":   "Basic " + c.token,
		"NoScheme":      c.token,
		"TwoSpaces":     "Bearer  " + c.token,
		"Malformed":     "Bearer a.b.c",
		"Truncated":     "Bearer " + c.token[:len(c.token)-1],
		"Expired":       signed(good, firstKey, func(claims jwt.MapClaims) { claims["exp"] = time.Now().Add(-time.Second).Unix() }),
		"NotYet":        signed(good, firstKey, func(claims jwt.MapClaims) { claims["nbf"] = time.Now().Add(time.Hour).Unix() }),
		"OtherIssuer":   signed(good, firstKey, func(claims jwt.MapClaims) { claims["iss"] = "other" }),
		"OtherAudience": signed(good, firstKey, func(claims jwt.MapClaims) { claims["aud"] = "other" }),
		"NoSession":     signed(good, firstKey, func(claims jwt.MapClaims) { claims["sid"] = uuid.New() }),
		"OtherKey":      signed(good, auth.Key{ID: firstKey.ID, Secret: secondKey.Secret}, keep),
		"UnknownKey":    signed(good, secondKey, keep),
		"AlgHS512":      signed(jwt.SigningMethodHS512, firstKey, keep),
		"AlgNone":       signed(jwt.SigningMethodNone, firstKey, keep),
	}
	for name, authorization := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, target := range []string{"/v1/users/me", "/v1/accounts", "/v1/jobs/x", "/v1/accounts/1234/transactions?x=1"} {
				c.in(t).get(target, "Authorization", authorization).
					problem(http.StatusUnauthorized, "unauthenticated").wantHeader("Www-Authenticate", "Bearer")
			}
			c.in(t).post("/v1/accounts/1234/deposits", `{`, "Authorization", authorization).
				problem(http.StatusUnauthorized, "unauthenticated").wantHeader("Www-Authenticate", "Bearer")
		})
	}
}

// While keys are rotated two are live: the first signs, both verify.
func TestTwoKeysLive(t *testing.T) {
	t.Parallel()
	before := start(t, func(set *settings) { set.keys = []auth.Key{firstKey} })
	during := start(t, func(set *settings) { set.pool, set.keys = before.pool, []auth.Key{secondKey, firstKey} })
	after := start(t, func(set *settings) { set.pool, set.keys = before.pool, []auth.Key{secondKey} })
	signUp(before.anonymous(t))
	tests := []struct {
		name    string
		issuer  *server
		reader  *server
		granted bool
	}{
		{"OK/Old", before, during, true},
		{"OK/New", during, during, true},
		{"OK/NewAfterwards", during, after, true},
		{"unauthenticated/OldAfterwards", before, after, false},
		{"unauthenticated/NewBefore", during, before, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := test.reader.anonymous(t)
			c.token = logIn(test.issuer.anonymous(t)).AccessToken
			if test.granted {
				c.get("/v1/users/me").want(http.StatusOK)
			} else {
				c.get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated")
			}
		})
	}
}
