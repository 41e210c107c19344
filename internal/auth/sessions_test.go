package auth

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

	"github.com/passbook/passbook/internal/testenv"
)

func TestLogIn(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	user, err := s.SignUp(t.Context(), "Ann@example.com", testPassword)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("OK", func(t *testing.T) {
		tokens, err := s.LogIn(t.Context(), "aNN@EXAMPLE.com", testPassword)
		if err != nil {
			t.Fatal(err)
		}
		if tokens.ExpiresIn != 15*time.Minute || tokens.RefreshExpiresIn != 30*24*time.Hour {
			t.Errorf("lives: %v, %v", tokens.ExpiresIn, tokens.RefreshExpiresIn)
		}
		if identity, err := s.Authenticate(t.Context(), tokens.AccessToken); err != nil || identity.UserID != user.ID {
			t.Errorf("authenticate: got %v, %v, want user %s", identity, err, user.ID)
		}
	})
	t.Run("ErrInvalidCredentials", func(t *testing.T) {
		for _, email := range []string{user.Email, "bob@example.com", "bob", "ann\x00@example.com", "\xff"} {
			if tokens, err := s.LogIn(t.Context(), email, "wrong password"); !errors.Is(err, ErrInvalidCredentials) || tokens != (Tokens{}) {
				t.Errorf("%q: got %v, %v, want ErrInvalidCredentials", email, tokens, err)
			}
		}
	})
}

// An unknown email is told from a known one by the time it takes, unless its
// password is compared with something: here with what can't be compared with.
func TestLogIn_UnknownEmailTakesTheSameWork(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	s.passwords.nobodys = "not a hash"
	for _, email := range []string{"bob@example.com", "bob"} {
		if _, err := s.LogIn(t.Context(), email, testPassword); !errors.Is(err, argon2id.ErrInvalidHash) {
			t.Errorf("%q: got %v: nothing was compared", email, err)
		}
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())

	t.Run("OK", func(t *testing.T) {
		identity, tokens := newSession(t, s)
		for range 3 {
			next := refresh(t, s, tokens.RefreshToken)
			if next.RefreshToken == tokens.RefreshToken || next.AccessToken == tokens.AccessToken {
				t.Fatal("a token came back")
			}
			got, err := s.Authenticate(t.Context(), next.AccessToken)
			if err != nil || got != identity {
				t.Fatalf("got %v, %v, want %v", got, err, identity)
			}
			tokens = next
		}
	})
	t.Run("OK/EachTokenHasItsOwnExpiry", func(t *testing.T) {
		_, tokens := newSession(t, s)
		for range 3 {
			pass(t, s, refreshTokenLife-time.Minute)
			tokens = refresh(t, s, tokens.RefreshToken)
		}
	})
	t.Run("ErrInvalidRefreshToken/Unknown", func(t *testing.T) {
		for _, token := range []string{"", "pbr_", newRefreshToken(), "\x00\xff", strings.Repeat("a", 64<<10)} {
			wantInvalid(t, s, token)
		}
	})
	t.Run("ErrInvalidRefreshToken/AccessToken", func(t *testing.T) {
		_, tokens := newSession(t, s)
		wantInvalid(t, s, tokens.AccessToken)
	})
	t.Run("ErrInvalidRefreshToken/Expired", func(t *testing.T) {
		_, tokens := newSession(t, s)
		pass(t, s, refreshTokenLife)
		wantInvalid(t, s, tokens.RefreshToken)
	})
	t.Run("ErrInvalidRefreshToken/Spent", func(t *testing.T) {
		_, first := newSession(t, s)
		_, others := newSession(t, s)
		second := refresh(t, s, first.RefreshToken)
		third := refresh(t, s, second.RefreshToken)
		wantAuthenticated(t, s, third.AccessToken)

		wantInvalid(t, s, first.RefreshToken)

		for _, tokens := range []Tokens{first, second, third} {
			wantUnauthenticated(t, s, tokens.AccessToken)
			wantInvalid(t, s, tokens.RefreshToken)
		}
		refresh(t, s, others.RefreshToken) // another session goes on
	})
	t.Run("ErrInvalidRefreshToken/SpentAndExpired", func(t *testing.T) {
		_, first := newSession(t, s)
		pass(t, s, refreshTokenLife/2)
		second := refresh(t, s, first.RefreshToken)
		pass(t, s, refreshTokenLife/2)
		wantInvalid(t, s, first.RefreshToken)
		wantInvalid(t, s, second.RefreshToken)
	})
	t.Run("ErrInvalidRefreshToken/Revoked", func(t *testing.T) {
		_, tokens := newSession(t, s)
		if err := s.Revoke(t.Context(), tokens.RefreshToken); err != nil {
			t.Fatal(err)
		}
		wantInvalid(t, s, tokens.RefreshToken)
	})
}

// pass makes every refresh token as old as if d had passed: the clock that they
// live by is Postgres's.
func pass(t *testing.T, s *Service, d time.Duration) {
	t.Helper()
	const sql = `UPDATE refresh_tokens SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval`
	if _, err := s.pool.Exec(t.Context(), sql, d); err != nil {
		t.Fatal(err)
	}
}

// Of many who use one token at once, one wins, and loses it to the next.
func TestRefresh_Concurrent(t *testing.T) {
	t.Parallel()
	const rounds, users = 5, 16
	s := newService(t, testenv.Pool(t), newClock())
	for range rounds {
		_, tokens := newSession(t, s)
		results := make([]Tokens, users)
		errs := make([]error, users)
		var wg sync.WaitGroup
		for i := range users {
			wg.Go(func() { results[i], errs[i] = s.Refresh(t.Context(), tokens.RefreshToken) })
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
				wantUnauthenticated(t, s, results[i].AccessToken)
				wantInvalid(t, s, results[i].RefreshToken)
			case !errors.Is(err, ErrInvalidRefreshToken):
				t.Errorf("got %v, want ErrInvalidRefreshToken", err)
			}
		}
		if won != 1 {
			t.Errorf("%d refreshes with one token won, want 1", won)
		}
		wantUnauthenticated(t, s, tokens.AccessToken)
	}
}

// A second use arrives while the first has not been committed: it must wait, and
// then see that the token is spent.
func TestRefresh_WaitsForTheOneUnderWay(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	_, tokens := newSession(t, s)
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // committed by then
	next := newRefreshToken()
	held, err := use(t.Context(), tx, hashRefreshToken(tokens.RefreshToken), hashRefreshToken(next))
	if err != nil || !held.isGood() {
		t.Fatalf("got %+v, %v", held, err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := s.Refresh(t.Context(), tokens.RefreshToken)
		second <- err
	}()
	waitForLock(t, s.pool)
	commit(t, tx)
	if err := <-second; !errors.Is(err, ErrInvalidRefreshToken) {
		t.Errorf("got %v, want ErrInvalidRefreshToken", err)
	}
	wantInvalid(t, s, next)
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	revoke := func(t *testing.T, token string) {
		t.Helper()
		if err := s.Revoke(t.Context(), token); err != nil {
			t.Errorf("got %v, want nil", err)
		}
	}

	t.Run("OK", func(t *testing.T) {
		_, tokens := newSession(t, s)
		_, others := newSession(t, s)
		revoke(t, tokens.RefreshToken)
		wantInvalid(t, s, tokens.RefreshToken)
		refresh(t, s, others.RefreshToken)
	})
	t.Run("OK/Again", func(t *testing.T) {
		identity, tokens := newSession(t, s)
		readRevoked := func() (at time.Time) {
			const sql = `SELECT revoked_at FROM sessions WHERE id = $1`
			if err := s.pool.QueryRow(t.Context(), sql, identity.SessionID).Scan(&at); err != nil {
				t.Fatal(err)
			}
			return at
		}
		revoke(t, tokens.RefreshToken)
		first := readRevoked()
		revoke(t, tokens.RefreshToken)
		if again := readRevoked(); !again.Equal(first) {
			t.Errorf("revoked_at moved from %v to %v", first, again)
		}
	})
	t.Run("OK/Spent", func(t *testing.T) {
		_, first := newSession(t, s)
		second := refresh(t, s, first.RefreshToken)
		revoke(t, first.RefreshToken)
		wantInvalid(t, s, second.RefreshToken)
	})
	t.Run("OK/Unknown", func(t *testing.T) {
		revoke(t, newRefreshToken())
		revoke(t, "\x00\xff")
	})
}

// Nothing that a client holds can be read out of the tables.
func TestSecretsAtRest(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	password := rand.Text()
	user, err := s.SignUp(t.Context(), "ann@example.com", password)
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.LogIn(t.Context(), user.Email, password)
	if err != nil {
		t.Fatal(err)
	}
	second := refresh(t, s, first.RefreshToken)

	var dump string
	const sql = `
		SELECT (SELECT string_agg(users::text, '') FROM users)
		    || (SELECT string_agg(sessions::text, '') FROM sessions)
		    || (SELECT string_agg(refresh_tokens::text, '') FROM refresh_tokens)`
	if err := s.pool.QueryRow(t.Context(), sql).Scan(&dump); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(dump, hex.EncodeToString(hashRefreshToken(second.RefreshToken))) {
		t.Error("the dump lacks what it should hold")
	}
	secrets := []string{password, first.AccessToken, second.AccessToken}
	for _, tokens := range []Tokens{first, second} {
		encoded, ok := strings.CutPrefix(tokens.RefreshToken, "pbr_")
		random, err := base64.RawURLEncoding.DecodeString(encoded)
		if !ok || err != nil || len(random) != 32 {
			t.Fatalf("refresh token %q: %v", tokens.RefreshToken, err)
		}
		secrets = append(secrets, encoded, string(random))
	}
	for _, secret := range secrets {
		if strings.Contains(dump, secret) || strings.Contains(dump, hex.EncodeToString([]byte(secret))) {
			t.Errorf("the tables hold %q", secret)
		}
	}
}
