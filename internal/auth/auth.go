// Package auth knows who is calling: users and their passwords, sessions, and
// the tokens that stand for a session. Its promise: once a session is revoked
// none of its tokens opens anything, at once in the process that revoked it and
// liveFor later in every other.
//
// All times are Postgres's: rows get its now(), a token is signed with what it
// answers, and checked against the time that came with the last look at its
// session. A process's own clock only measures how long ago that was, so apis
// need not agree on the time of day.
package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/postgres"
)

// What callers branch on. Any other error, but for a Fault, is Postgres's.
var (
	// ErrUnauthenticated is for an access token that opens nothing, whatever is
	// wrong with it.
	ErrUnauthenticated = errors.New("unauthenticated")

	// ErrInvalidCredentials is for an email and a password that don't belong
	// together, and for an unknown email: callers can't tell the two apart.
	ErrInvalidCredentials = errors.New("invalid credentials")

	// ErrInvalidRefreshToken is for a refresh token that is unknown, expired,
	// spent (but for reuseLeeway), or of a revoked session.
	ErrInvalidRefreshToken = errors.New("invalid refresh token")

	// ErrEmailTaken is for a sign-up with another user's email, in any case.
	ErrEmailTaken = errors.New("email taken")

	// ErrNotFound is for a user who is not there.
	ErrNotFound = errors.New("user not found")

	// ErrBusy is for a password that found no free slot to be hashed in. Nothing
	// happened: the HTTP edge answers 503 unavailable with Retry-After.
	ErrBusy = errors.New("too many passwords being hashed")
)

// Config says how tokens are made and checked.
type Config struct {
	Keys     []Key            // the first signs, all verify
	Issuer   string           // the tokens' iss; "passbook" where empty
	Audience string           // the tokens' aud; "passbook" where empty
	Now      func() time.Time // time.Now where nil; for how much time has passed, never for the time of day
	Log      *slog.Logger     // what an operator should look at; nothing is logged where nil

	// Lookups is the pool through which Authenticate reads, for an accept waits for
	// that: the Service's own where nil.
	Lookups *pgxpool.Pool

	// Registry gets the metrics; they are counted for nothing where it is nil.
	Registry prometheus.Registerer
}

// Service signs users up, logs them in, and tells who holds a token.
type Service struct {
	pool      *pgxpool.Pool
	lookups   *pgxpool.Pool
	now       func() time.Time
	passwords *hasher
	access    *signer
	live      *liveSessions
	locks     postgres.LockRetries // of sessions, by the hash of the token
	log       *slog.Logger
	reuses    prometheus.Counter
}

// New makes a Service on the database behind pool. It refuses a missing, short
// or repeated key, naming every fault.
func New(pool *pgxpool.Pool, cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	access, err := newSigner(cfg)
	if err != nil {
		return nil, err
	}
	passwords, err := newHasher()
	if err != nil {
		return nil, err
	}
	reuses := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "passbook_refresh_token_reuses_total", Help: "Spent refresh tokens that were used again, each of which revoked its session.",
	})
	if cfg.Registry != nil {
		cfg.Registry.MustRegister(reuses)
	}
	return &Service{
		pool:      pool,
		lookups:   cmp.Or(cfg.Lookups, pool),
		now:       cfg.Now,
		passwords: passwords,
		access:    access,
		live:      newLiveSessions(),
		log:       cfg.Log,
		reuses:    reuses,
	}, nil
}

// Identity is whom an access token stands for.
type Identity struct {
	UserID    uuid.UUID
	SessionID uuid.UUID
}

// Authenticate tells who holds accessToken. ErrUnauthenticated for anything
// wrong with the token, its session revoked included. Any other error says that
// the session could not be looked up: the HTTP edge answers 503.
func (s *Service) Authenticate(ctx context.Context, accessToken string) (Identity, error) {
	claims, err := s.access.verify(accessToken)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	alive, now, err := s.isAlive(ctx, claims.SessionID)
	switch {
	case err != nil:
		return Identity{}, fmt.Errorf("authenticate: %w", err)
	case !alive:
		return Identity{}, fmt.Errorf("%w: session %s is revoked or unknown", ErrUnauthenticated, claims.SessionID)
	}
	if err := claims.checkTime(now); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	return claims.identity(), nil
}

// isAlive asks Postgres only about a session not seen alive in the last liveFor.
// Requests that miss at the same time each ask for themselves: it is one read
// of a primary key, and a shared answer could outlive a revocation.
//
// now is the time by Postgres's clock: as it was read, or that and what has
// passed since.
func (s *Service) isAlive(ctx context.Context, sessionID uuid.UUID) (alive bool, now time.Time, err error) {
	const sql = `SELECT EXISTS (SELECT FROM sessions WHERE id = $1 AND revoked_at IS NULL), clock_timestamp()`
	here := s.now() // from before the read, so that the answer is never older than liveFor
	now, alive, drops := s.live.has(sessionID, here)
	if alive {
		return true, now, nil
	}
	if err := s.lookups.QueryRow(ctx, sql, sessionID).Scan(&alive, &now); err != nil {
		return false, time.Time{}, fmt.Errorf("read session %s: %w", sessionID, err)
	}
	if alive {
		s.live.keep(sessionID, sighting{here: here, there: now}, drops)
	}
	return alive, now, nil
}
