package auth

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
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

// An unknown email differs from a known one by the time it takes, unless its
// password is compared with something: here with what can't be compared with.
func TestLogIn_UnknownEmailTakesTheSameWork(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	s.passwords.decoy = "not a hash"
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
	const sql = `UPDATE refresh_tokens SET created_at = created_at - $1::interval,
		expires_at = expires_at - $1::interval, spent_at = spent_at - $1::interval`
	if _, err := s.pool.Exec(t.Context(), sql, d); err != nil {
		t.Fatal(err)
	}
}

// A second tab, or a client whose answer was lost, gets another pair of the same session.
func TestRefresh_OnceMore(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())

	t.Run("OK", func(t *testing.T) {
		identity, first := newSession(t, s)
		second := refresh(t, s, first.RefreshToken)
		pass(t, s, reuseLeeway-time.Second)
		third := refresh(t, s, first.RefreshToken)
		if third.RefreshToken == second.RefreshToken {
			t.Error("a refresh token came back")
		}
		for _, tokens := range []Tokens{first, second, third} {
			wantAuthenticated(t, s, tokens.AccessToken)
		}
		if got, err := s.Authenticate(t.Context(), third.AccessToken); err != nil || got != identity {
			t.Errorf("got %v, %v, want %v", got, err, identity)
		}
		pass(t, s, time.Hour) // each tab goes on by itself, and each may lose an answer
		for _, tokens := range []Tokens{second, third} {
			refresh(t, s, tokens.RefreshToken)
			refresh(t, s, refresh(t, s, tokens.RefreshToken).RefreshToken)
		}
	})
	t.Run("OK/ExpiredMeanwhile", func(t *testing.T) {
		_, first := newSession(t, s)
		pass(t, s, refreshTokenLife-time.Second)
		refresh(t, s, first.RefreshToken)
		pass(t, s, 2*time.Second)
		refresh(t, s, first.RefreshToken)
	})
	tests := map[string]func(t *testing.T, first Tokens) []Tokens{
		"TooLate": func(t *testing.T, first Tokens) []Tokens {
			t.Helper()
			second := refresh(t, s, first.RefreshToken)
			pass(t, s, reuseLeeway)
			return []Tokens{second}
		},
		"Twice": func(t *testing.T, first Tokens) []Tokens {
			t.Helper()
			return []Tokens{refresh(t, s, first.RefreshToken), refresh(t, s, first.RefreshToken)}
		},
		"Older": func(t *testing.T, first Tokens) []Tokens {
			t.Helper()
			second := refresh(t, s, first.RefreshToken)
			return []Tokens{second, refresh(t, s, second.RefreshToken)}
		},
	}
	for name, spend := range tests {
		t.Run("ErrInvalidRefreshToken/"+name, func(t *testing.T) {
			identity, first := newSession(t, s)
			all := append(spend(t, first), first)
			var log bytes.Buffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			before := count(t, s.metrics.reuses)
			wantInvalid(t, s, first.RefreshToken)
			if got := count(t, s.metrics.reuses) - before; got != 1 {
				t.Errorf("counted %v reuses, want 1", got)
			}
			for _, want := range []string{"level=WARN", identity.UserID.String(), identity.SessionID.String()} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("log %q does not say %s", log.String(), want)
				}
			}
			if secret := first.RefreshToken; strings.Contains(log.String(), secret) {
				t.Error("the log has the token")
			}
			for _, tokens := range all {
				wantUnauthenticated(t, s, tokens.AccessToken)
				wantInvalid(t, s, tokens.RefreshToken)
			}
		})
	}
}

// While a synchronous standby is away, requests that end with an error change nothing. A client that sends
// them again and again afterwards has what it asked for, and keeps its session.
func TestStandbyAway(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: server.URL(), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := newService(t, pool, newClock())
	user, err := s.SignUp(t.Context(), "ann@example.com", testPassword)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := s.LogIn(t.Context(), "ann@example.com", testPassword)
	if err != nil {
		t.Fatal(err)
	}
	const next = "another battery"
	requests := []struct {
		name string
		send func(context.Context) error
	}{
		{"SignUp", func(ctx context.Context) error {
			_, err := s.SignUp(ctx, "bob@example.com", testPassword)
			return err
		}},
		{"Refresh", func(ctx context.Context) error {
			_, err := s.Refresh(ctx, tokens.RefreshToken)
			return err
		}},
		{"ChangePassword", func(ctx context.Context) error { return s.ChangePassword(ctx, user.ID, testPassword, next) }},
	}
	back := testenv.AwayStandby(t, server.URL())
	for _, request := range requests {
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := request.send(ctx); !postgres.IsUnavailable(err) {
				t.Errorf("%s without the standby: %v", request.name, err)
			}
			cancel()
		}
	}
	back()
	for _, request := range requests {
		if err := request.send(t.Context()); err != nil {
			t.Errorf("%s with the standby: %v", request.name, err)
		}
	}
	if n := count(t, s.metrics.reuses); n != 0 {
		t.Errorf("counted %v reuses, want none", n)
	}
}

func count(t *testing.T, counter prometheus.Counter) float64 {
	t.Helper()
	var metric dto.Metric
	if err := counter.Write(&metric); err != nil {
		t.Fatal(err)
	}
	return metric.GetCounter().GetValue()
}

// Two concurrent uses of one token both get a pair.
func TestRefresh_TwoAtOnce(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	for range 5 {
		_, tokens := newSession(t, s)
		var results [2]Tokens
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() { results[i] = refresh(t, s, tokens.RefreshToken) })
		}
		wg.Wait()
		for _, result := range results {
			wantAuthenticated(t, s, result.AccessToken)
			refresh(t, s, result.RefreshToken)
		}
	}
}

// Of many concurrent uses of one token, two get a pair, which the next use revokes.
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
		if won != 2 {
			t.Errorf("%d refreshes with one token won, want 2", won)
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
	refresh(t, s, tokens.RefreshToken)
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
	waitForRetry(t, s, tokens.RefreshToken, 1)
	commit(t, tx)
	if err := <-second; !errors.Is(err, ErrInvalidRefreshToken) {
		t.Errorf("got %v, want ErrInvalidRefreshToken", err)
	}
	wantInvalid(t, s, next)
}

// Requests that use a locked session's tokens keep no connection: the pool of two, of which
// one holds the lock, serves the others meanwhile.
func TestRefresh_LockedKeepsNoConnection(t *testing.T) {
	t.Parallel()
	cfg, err := pgxpool.ParseConfig(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := newService(t, pool, newClock())
	s.locks.For = time.Hour
	_, others := newSession(t, s)
	identity, tokens := newSession(t, s)
	_, revoked := newSession(t, s)
	tx := lockSessions(t, s, tokens, revoked)
	var wg sync.WaitGroup
	const each = 8
	for range each {
		wg.Go(func() { _, _ = s.Refresh(t.Context(), tokens.RefreshToken) })
		wg.Go(func() {
			if err := s.Revoke(t.Context(), revoked.RefreshToken); err != nil {
				t.Error(err)
			}
		})
	}
	waitForRetry(t, s, tokens.RefreshToken, each)
	waitForRetry(t, s, revoked.RefreshToken, each)
	for range 10 {
		if _, err := s.User(t.Context(), identity.UserID); err != nil {
			t.Error(err)
		}
		others = refresh(t, s, others.RefreshToken)
	}
	commit(t, tx)
	wg.Wait()
	wantInvalid(t, s, tokens.RefreshToken) // more than two used it
	wantInvalid(t, s, revoked.RefreshToken)
}

// A session that stays locked is given up, and so is one that many wait for; its tokens
// then are as they were.
func TestRefresh_ErrLocked(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	s.locks.For = time.Millisecond
	_, tokens := newSession(t, s)
	tx := lockSessions(t, s, tokens)
	if _, err := s.Refresh(t.Context(), tokens.RefreshToken); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("refresh: got %v, want ErrLocked", err)
	}
	if err := s.Revoke(t.Context(), tokens.RefreshToken); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("revoke: got %v, want ErrLocked", err)
	}
	wantAuthenticated(t, s, tokens.AccessToken)
	commit(t, tx)
	refresh(t, s, tokens.RefreshToken)
}

// A log-in waits for none of the sessions that it revokes: one that is locked stays until the
// next log-in.
func TestStartSession_PassesOverLocked(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, oldest := newSession(t, s)
	second := startSession(t, s, identity.UserID)
	tx := lockSessions(t, s, oldest)
	for range maxSessions {
		startSession(t, s, identity.UserID)
	}
	wantUnauthenticated(t, s, second.AccessToken)
	wantAuthenticated(t, s, oldest.AccessToken)
	commit(t, tx)
	startSession(t, s, identity.UserID)
	wantUnauthenticated(t, s, oldest.AccessToken)
}

// lockSessions locks the sessions of tokens until the transaction ends.
func lockSessions(t *testing.T, s *Service, sessions ...Tokens) pgx.Tx {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	for _, tokens := range sessions {
		if held, err := lockToken(t.Context(), tx, hashRefreshToken(tokens.RefreshToken)); err != nil || !held.isGood() {
			t.Fatalf("got %+v, %v", held, err)
		}
	}
	return tx
}

// waitForRetry waits until so many uses of a refresh token have found its session locked.
func waitForRetry(t *testing.T, s *Service, refreshToken string, uses int) {
	t.Helper()
	testenv.Eventually(t, "uses of the token to pause", func() bool {
		return s.locks.Pausing(string(hashRefreshToken(refreshToken))) == uses
	})
}

// A log-in beyond the bound revokes the oldest session, whose tokens open nothing from then on.
func TestStartSession_RevokesTheOldest(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	_, others := newSession(t, s)
	identity, oldest := newSession(t, s)
	wantAuthenticated(t, s, oldest.AccessToken) // and is remembered
	spare := refresh(t, s, oldest.RefreshToken)
	second := startSession(t, s, identity.UserID)
	for range maxSessions - 2 {
		startSession(t, s, identity.UserID)
	}
	wantAuthenticated(t, s, oldest.AccessToken)

	newest := startSession(t, s, identity.UserID)

	for _, tokens := range []Tokens{oldest, spare} {
		wantUnauthenticated(t, s, tokens.AccessToken)
		wantInvalid(t, s, tokens.RefreshToken)
	}
	for _, tokens := range []Tokens{second, newest, others} {
		wantAuthenticated(t, s, tokens.AccessToken)
		refresh(t, s, tokens.RefreshToken)
	}
	if err := s.Revoke(t.Context(), newest.RefreshToken); err != nil { // a session that is over takes no place
		t.Fatal(err)
	}
	startSession(t, s, identity.UserID)
	wantAuthenticated(t, s, second.AccessToken)
}

func TestStartSession_Concurrent(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, _ := newSession(t, s)
	const begun = 2 * maxSessions // by a build without the bound
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO sessions (id, user_id, created_at)
		SELECT gen_random_uuid(), $1, now() - n * interval '1 minute' FROM generate_series(1, $2::int) n`, identity.UserID, begun); err != nil {
		t.Fatal(err)
	}
	results := make([]Tokens, maxSessions/2)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i] = startSession(t, s, identity.UserID) })
	}
	wg.Wait()
	for _, tokens := range results { // none of the new ones was taken for an old one
		wantAuthenticated(t, s, tokens.AccessToken)
	}
	var live int
	const sql = `SELECT count(*) FROM sessions WHERE user_id = $1 AND revoked_at IS NULL`
	if err := s.pool.QueryRow(t.Context(), sql, identity.UserID).Scan(&live); err != nil || live != maxSessions {
		t.Errorf("%d live sessions, %v, want %d", live, err, maxSessions)
	}
}

func startSession(t *testing.T, s *Service, userID uuid.UUID) Tokens {
	t.Helper()
	tokens, err := s.startSession(t.Context(), userID, noPassword)
	if err != nil {
		t.Error(err)
	}
	return tokens
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
	t.Run("ErrInvalidRefreshToken/Unknown", func(t *testing.T) {
		for _, token := range []string{newRefreshToken(), "\x00\xff"} {
			if err := s.Revoke(t.Context(), token); !errors.Is(err, ErrInvalidRefreshToken) {
				t.Errorf("%q: got %v, want ErrInvalidRefreshToken", token, err)
			}
		}
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
