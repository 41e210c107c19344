// Package auth identifies callers: users and their passwords, sessions, and the tokens of a
// session. Its promise: no token of a revoked session is accepted, at once in the process that
// revoked it and within liveFor in every other process. A change of the password revokes every
// session that began with the old one.
//
// All times are Postgres's: rows get its now(), a token is signed with the time that Postgres
// returned, and checked against the time that came with the last read of its session. A process's
// own clock only measures how long ago that read was, so APIs need not agree on the time of day.
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
	// ErrUnauthenticated is for an access token that is not accepted, for any reason.
	ErrUnauthenticated = errors.New("unauthenticated")

	// ErrInvalidCredentials is for an email and a password that don't belong together, and for
	// an unknown email: a caller can't distinguish the two. It is also for a wrong current
	// password, where a user changes the password.
	ErrInvalidCredentials = errors.New("invalid credentials")

	// ErrInvalidRefreshToken is for a refresh token that is unknown, expired,
	// spent (but for reuseLeeway), or of a revoked session.
	ErrInvalidRefreshToken = errors.New("invalid refresh token")

	// ErrEmailTaken is for a sign-up with another user's email, in any case.
	ErrEmailTaken = errors.New("email taken")

	// ErrNotFound is for a user that does not exist.
	ErrNotFound = errors.New("user not found")

	// ErrBusy is returned where no slot to hash a password in became free. Nothing happened: the
	// HTTP edge answers 503 unavailable with Retry-After.
	ErrBusy = errors.New("too many passwords being hashed")
)

// Config is how tokens are made and checked.
type Config struct {
	Keys     []Key            // the first signs, all verify
	Issuer   string           // the tokens' iss; "passbook" where empty
	Audience string           // the tokens' aud; "passbook" where empty
	Now      func() time.Time // time.Now where nil; measures durations, never the time of day
	Log      *slog.Logger     // nil for no log

	// Lookups is the pool through which Authenticate reads, since accepts wait for that read; nil
	// for the Service's own pool.
	Lookups *pgxpool.Pool

	// Registry gets the metrics; nil for none.
	Registry prometheus.Registerer
}

// Service signs users up, logs them in, and authenticates tokens.
type Service struct {
	pool      *pgxpool.Pool
	lookups   *pgxpool.Pool
	now       func() time.Time
	passwords *hasher
	access    *signer
	live      *liveSessions
	locks     postgres.LockRetries // of sessions, by the hash of the token, and of users, by their id
	log       *slog.Logger
	metrics   *metrics
}

// New makes a Service on the database behind pool. It refuses a missing, short or repeated key; the
// error names every fault.
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
	m := newMetrics(cfg.Registry)
	return &Service{
		pool:      pool,
		lookups:   cmp.Or(cfg.Lookups, pool),
		now:       cfg.Now,
		passwords: newHasher(m),
		access:    access,
		live:      newLiveSessions(),
		log:       cfg.Log,
		metrics:   m,
	}, nil
}

// confirm returns once commits are durable again; sql is or contains postgres.ConfirmSQL. It comes before
// a change that a client can't ask for twice, such as the use of a refresh token. While a synchronous
// standby is away, the commit of the change would be visible, and its client would be told to send the
// same request again.
func (s *Service) confirm(ctx context.Context, sql string, args ...any) error {
	if _, err := s.pool.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("confirm that commits are durable: %w", err)
	}
	return nil
}

// Identity is the user and the session of an access token.
type Identity struct {
	UserID    uuid.UUID
	SessionID uuid.UUID
}

// Authenticate returns the identity of an access token. ErrUnauthenticated for any fault of the
// token, a revoked session included. Any other error says that the session could not be read: the
// HTTP edge answers 503.
func (s *Service) Authenticate(ctx context.Context, accessToken string) (Identity, error) {
	session, err := s.Session(ctx, accessToken)
	return session.Identity, err
}

// Session is the identity of an access token, and how much longer the token is accepted.
type Session struct {
	Identity
	ExpiresIn time.Duration
}

// Session is Authenticate for a caller that serves a token for longer than a request. That caller
// ends its answer when the token expires, and checks meanwhile whether the session is revoked.
func (s *Service) Session(ctx context.Context, accessToken string) (Session, error) {
	claims, err := s.access.verify(accessToken)
	if err != nil {
		return Session{}, s.refuse(tokenFault(err), err)
	}
	alive, now, err := s.isAlive(ctx, claims.SessionID)
	switch {
	case err != nil:
		return Session{}, fmt.Errorf("authenticate: %w", err)
	case !alive:
		return Session{}, s.refuse(sessionIsOver, fmt.Errorf("session %s is revoked or unknown", claims.SessionID))
	}
	if err := claims.checkTime(now); err != nil {
		return Session{}, s.refuse(tokenFault(err), err)
	}
	return Session{Identity: claims.identity(), ExpiresIn: time.Unix(claims.ExpiresAt, 0).Sub(now)}, nil
}

// refuse counts an access token that is not accepted, and returns its error.
func (s *Service) refuse(reason string, err error) error {
	s.metrics.tokensRefused.WithLabelValues(reason).Inc()
	return fmt.Errorf("%w: %w", ErrUnauthenticated, err)
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
