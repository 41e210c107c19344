package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	clock := newClock()
	s := newService(t, testenv.Pool(t), clock)
	identity, tokens := newSession(t, s)

	t.Run("OK", func(t *testing.T) {
		got, err := s.Authenticate(t.Context(), tokens.AccessToken)
		if err != nil || got != identity {
			t.Errorf("got %v, %v, want %v", got, err, identity)
		}
	})
	t.Run("ErrUnauthenticated/RefreshToken", func(t *testing.T) {
		wantUnauthenticated(t, s, tokens.RefreshToken)
	})
	t.Run("ErrUnauthenticated/UnknownSession", func(t *testing.T) {
		token, err := s.access.sign(Identity{identity.UserID, uuid.New()}, postgresNow(t, s))
		if err != nil {
			t.Fatal(err)
		}
		wantUnauthenticated(t, s, token)
	})
	t.Run("ErrUnauthenticated/Expired", func(t *testing.T) {
		// While the session is not read again its time goes on by our clock.
		wantAuthenticated(t, s, tokens.AccessToken)
		now, _, _ := s.live.has(identity.SessionID, clock.Now())
		const left = liveFor - time.Second
		token, err := s.access.sign(identity, now.Add(left-accessTokenLife))
		if err != nil {
			t.Fatal(err)
		}
		wantAuthenticated(t, s, token)
		clock.Advance(left)
		wantUnauthenticated(t, s, token)
		wantAuthenticated(t, s, tokens.AccessToken)
	})
	t.Run("ErrUnauthenticated/NotYet", func(t *testing.T) {
		token, err := s.access.sign(identity, postgresNow(t, s).Add(2*maxClockSkew))
		if err != nil {
			t.Fatal(err)
		}
		wantUnauthenticated(t, s, token)
	})
}

// Processes whose clocks are hours apart agree on every token, because the time
// is Postgres's.
func TestAuthenticate_ClocksApart(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	skewed := func(skew time.Duration) *Service {
		s, err := New(pool, Config{
			Keys: []Key{{"k1", testSecret(1)}},
			Now:  func() time.Time { return time.Now().Add(skew) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	services := map[string]*Service{"Ahead": skewed(time.Hour), "Right": skewed(0), "Behind": skewed(-time.Hour)}
	for name, from := range services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			identity, first := newSession(t, from)
			second := refresh(t, from, first.RefreshToken)
			expired, err := from.access.sign(identity, postgresNow(t, from).Add(-accessTokenLife))
			if err != nil {
				t.Fatal(err)
			}
			for _, to := range services {
				wantAuthenticated(t, to, first.AccessToken)
				wantAuthenticated(t, to, second.AccessToken)
				wantUnauthenticated(t, to, expired) // also when the session is known there
				second = refresh(t, to, second.RefreshToken)
			}
			claims, err := from.access.verify(first.AccessToken)
			if err != nil {
				t.Fatal(err)
			}
			if age := postgresNow(t, from).Unix() - claims.IssuedAt; age < 0 || age > 60 {
				t.Errorf("signed %d s ago by Postgres's clock", age)
			}
		})
	}
}

func postgresNow(t *testing.T, s *Service) (now time.Time) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now); err != nil {
		t.Fatal(err)
	}
	return now
}

func TestAuthenticate_Revoked(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		revoke func(ctx context.Context, s *Service, spent, newest string) error
	}{
		"Revoke": {func(ctx context.Context, s *Service, _, newest string) error {
			return s.Revoke(ctx, newest)
		}},
		"SpentTokenUsed": {func(ctx context.Context, s *Service, spent, _ string) error {
			if _, err := s.Refresh(ctx, spent); err != nil { // once more, which is granted
				return err
			}
			_, err := s.Refresh(ctx, spent)
			if !errors.Is(err, ErrInvalidRefreshToken) {
				return fmt.Errorf("want ErrInvalidRefreshToken, got: %w", err)
			}
			return nil
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, clock := testenv.Pool(t), newClock()
			here, there := newService(t, pool, clock), newService(t, pool, clock)
			user, err := here.SignUp(t.Context(), "ann@example.com", testPassword)
			if err != nil {
				t.Fatal(err)
			}
			first, err := here.LogIn(t.Context(), user.Email, testPassword)
			if err != nil {
				t.Fatal(err)
			}
			second := refresh(t, here, first.RefreshToken)
			for _, s := range []*Service{here, there} { // both have seen it alive
				wantAuthenticated(t, s, second.AccessToken)
			}

			if err := tt.revoke(t.Context(), here, first.RefreshToken, second.RefreshToken); err != nil {
				t.Fatal(err)
			}

			wantUnauthenticated(t, here, first.AccessToken)
			wantUnauthenticated(t, here, second.AccessToken)
			wantInvalid(t, here, second.RefreshToken)
			wantInvalid(t, there, second.RefreshToken)
			clock.Advance(liveFor)
			wantUnauthenticated(t, there, second.AccessToken)
		})
	}
}

// A read of an alive session that is overtaken by its revocation must not bring
// it back to life.
func TestAuthenticate_RevokedDuringRead(t *testing.T) {
	t.Parallel()
	tracer := &aliveReads{}
	s := newService(t, tracedPool(t, tracer), newClock())
	_, tokens := newSession(t, s)
	tracer.after = func() {
		if err := s.Revoke(t.Context(), tokens.RefreshToken); err != nil {
			t.Error(err)
		}
	}
	wantAuthenticated(t, s, tokens.AccessToken) // it was alive when it was read
	tracer.after = nil
	wantUnauthenticated(t, s, tokens.AccessToken)
}

func TestAuthenticate_ReadsOncePerLiveFor(t *testing.T) {
	t.Parallel()
	tracer, clock := &aliveReads{}, newClock()
	s := newService(t, tracedPool(t, tracer), clock)
	_, tokens := newSession(t, s)
	for range 10 {
		wantAuthenticated(t, s, tokens.AccessToken)
	}
	if got := tracer.count.Load(); got != 1 {
		t.Errorf("%d reads within liveFor, want 1", got)
	}
	clock.Advance(liveFor)
	wantAuthenticated(t, s, tokens.AccessToken)
	if got := tracer.count.Load(); got != 2 {
		t.Errorf("%d reads after liveFor, want 2", got)
	}
}

func TestAuthenticate_PostgresDown(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	s := newService(t, pool, newClock())
	_, tokens := newSession(t, s)
	pool.Close()
	if _, err := s.Authenticate(t.Context(), tokens.AccessToken); err == nil || errors.Is(err, ErrUnauthenticated) {
		t.Errorf("got %v, want an error that blames Postgres", err)
	}
}

func TestLiveSessions_Bounded(t *testing.T) {
	t.Parallel()
	l, now := newLiveSessions(), time.Now()
	last := uuid.Nil
	for range maxLive + 1 {
		last = uuid.New()
		l.keep(last, sighting{now, now}, 0)
	}
	if n := l.seen.Len(); n != maxLive {
		t.Errorf("%d sessions are remembered, want %d", n, maxLive)
	}
	if _, alive, _ := l.has(last, now); !alive {
		t.Error("the session that was seen last is forgotten")
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	good := Key{ID: "a", Secret: testSecret(1)}
	tests := map[string]struct {
		keys []Key
		want string // in the error
	}{
		"NoKey":       {nil, "no key"},
		"NoID":        {[]Key{{Secret: testSecret(1)}}, "key 1 has no id"},
		"ShortSecret": {[]Key{good, {"b", testSecret(2)[1:]}}, `key "b" has 31 bytes`},
		"Zeros":       {[]Key{good, {"b", make([]byte, 32)}}, `key "b" is one byte repeated`},
		"SameIDTwice": {[]Key{good, {"a", testSecret(2)}}, `key id "a" is repeated`},
		"EveryFault":  {[]Key{{}, good, good}, "is repeated"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := New(nil, Config{Keys: tt.keys}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

const testPassword = "correct horse battery"

func testSecret(b byte) []byte { return bytes.Repeat([]byte{b, b + 1}, 16) }

func newService(t *testing.T, pool *pgxpool.Pool, clock *clock) *Service {
	t.Helper()
	s, err := New(pool, Config{Keys: []Key{{"k1", testSecret(1)}}, Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noPassword is the hash of no password.
const noPassword = "no password"

// newSession makes a user and a session without the cost of hashing a password.
func newSession(t *testing.T, s *Service) (Identity, Tokens) {
	t.Helper()
	user, err := s.insertUser(t.Context(), uuid.NewString()+"@example.com", noPassword)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := s.startSession(t.Context(), user.ID, noPassword)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := s.access.verify(tokens.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	return claims.identity(), tokens
}

func refresh(t *testing.T, s *Service, refreshToken string) Tokens {
	t.Helper()
	tokens, err := s.Refresh(t.Context(), refreshToken)
	if err != nil {
		t.Fatalf("refresh: %v", err)
	}
	return tokens
}

func wantInvalid(t *testing.T, s *Service, refreshToken string) {
	t.Helper()
	if tokens, err := s.Refresh(t.Context(), refreshToken); !errors.Is(err, ErrInvalidRefreshToken) || tokens != (Tokens{}) {
		t.Errorf("refresh: got %v, %v, want ErrInvalidRefreshToken", tokens, err)
	}
}

func wantAuthenticated(t *testing.T, s *Service, accessToken string) {
	t.Helper()
	if _, err := s.Authenticate(t.Context(), accessToken); err != nil {
		t.Errorf("authenticate: %v", err)
	}
}

func wantUnauthenticated(t *testing.T, s *Service, accessToken string) {
	t.Helper()
	if identity, err := s.Authenticate(t.Context(), accessToken); !errors.Is(err, ErrUnauthenticated) || identity != (Identity{}) {
		t.Errorf("authenticate: got %v, %v, want ErrUnauthenticated", identity, err)
	}
}

// clock stands still until it is advanced.
type clock struct{ now atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.now.Store(&now)
	return c
}

func (c *clock) Now() time.Time { return *c.now.Load() }

func (c *clock) Advance(d time.Duration) {
	now := c.Now().Add(d)
	c.now.Store(&now)
}

// aliveReads counts the reads of isAlive, and runs after when one has ended.
type aliveReads struct {
	count atomic.Int64
	after func()
}

type isAliveRead struct{}

func (r *aliveReads) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, "SELECT EXISTS (SELECT FROM sessions") {
		return context.WithValue(ctx, isAliveRead{}, true)
	}
	return ctx
}

func (r *aliveReads) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(isAliveRead{}) == nil {
		return
	}
	r.count.Add(1)
	if r.after != nil {
		r.after()
	}
}

func tracedPool(t *testing.T, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	cfg := testenv.Pool(t).Config()
	cfg.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
