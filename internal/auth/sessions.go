package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
)

const (
	// refreshTokenLife is how long a refresh token can be used.
	refreshTokenLife = 30 * 24 * time.Hour

	// reuseLeeway is how long after a refresh token was spent it may be used once more: by a
	// second tab, or because the answer was lost.
	reuseLeeway = 10 * time.Second

	// maxSessions bounds a user's live sessions: one more log-in revokes the oldest.
	maxSessions = 100

	// maxRevoked bounds how many sessions one log-in revokes: a user may have many more than
	// maxSessions from a build without that bound. The next log-in revokes more.
	maxRevoked = 1000

	// refreshTokenPrefix lets secret scanners recognise a leaked token.
	refreshTokenPrefix = "pbr_"

	// refreshTokenBytes is the randomness in a refresh token: too much to guess, so a fast hash
	// is enough to store it.
	refreshTokenBytes = 32
)

// Tokens is a pair of tokens of a session: one for requests, one to get the next pair.
type Tokens struct {
	AccessToken      string // a JWT
	ExpiresIn        time.Duration
	RefreshToken     string // opaque; works once, and once more within reuseLeeway
	RefreshExpiresIn time.Duration
	Email            string // of the session's user, where Refresh made the pair
}

// LogIn begins a session. ErrInvalidCredentials for a wrong password and, after the same work, for
// an unknown email; ErrBusy where too many passwords are being hashed; postgres.ErrLocked where a
// change of the password is under way.
func (s *Service) LogIn(ctx context.Context, email, password string) (Tokens, error) {
	userID, hash, err := s.credentials(ctx, email)
	if err != nil {
		return Tokens{}, fmt.Errorf("log in: %w", err)
	}
	if err := s.checkPassword(ctx, password, hash); err != nil {
		return Tokens{}, fmt.Errorf("log in: %w", err)
	}
	tokens, err := s.startSession(ctx, userID, hash)
	if err != nil {
		return Tokens{}, fmt.Errorf("log in: %w", err)
	}
	return tokens, nil
}

// checkPassword returns ErrInvalidCredentials unless the hash is the password's.
func (s *Service) checkPassword(ctx context.Context, password, hash string) error {
	if prepared, err := preparePassword(password); err == nil {
		password = prepared // a password that can't be prepared is no user's, and takes the same time
	}
	ok, err := s.passwords.matches(ctx, password, hash)
	if err == nil && !ok {
		err = ErrInvalidCredentials
	}
	return err
}

// credentials reads the user of an email and the hash to compare with: the decoy for an unknown
// email.
func (s *Service) credentials(ctx context.Context, email string) (userID uuid.UUID, hash string, err error) {
	const sql = `SELECT id, password_hash FROM users WHERE email_key = $1`
	if !isAddress(email) { // Postgres's text might not hold it
		return uuid.Nil, s.passwords.decoy, nil
	}
	err = s.pool.QueryRow(ctx, sql, EmailKey(email)).Scan(&userID, &hash)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return uuid.Nil, s.passwords.decoy, nil
	case err != nil:
		return uuid.Nil, "", fmt.Errorf("read credentials: %w", err)
	}
	return userID, hash, nil
}

// startSession makes a session with its first refresh token, and revokes the user's oldest
// beyond maxSessions.
//
// A crash after the first commit leaves a session whose tokens no client has seen, and
// perhaps one too many: the next log-in revokes it.
//
// ErrInvalidCredentials where the user's password no longer has this hash.
func (s *Service) startSession(ctx context.Context, userID uuid.UUID, passwordHash string) (Tokens, error) {
	sessionID, err := uuid.NewV7()
	if err != nil {
		return Tokens{}, fmt.Errorf("make session id: %w", err)
	}
	refreshToken := newRefreshToken()
	session := Identity{UserID: userID, SessionID: sessionID}
	now, err := s.insertSession(ctx, session, passwordHash, hashRefreshToken(refreshToken))
	if err != nil {
		return Tokens{}, fmt.Errorf("start session: %w", err)
	}
	if err := s.revokeOldest(ctx, userID); err != nil {
		return Tokens{}, fmt.Errorf("start session: %w", err)
	}
	return s.tokens(session, refreshToken, now)
}

// insertSession returns the time of the insert, by Postgres's clock. It locks the user's row against
// a change of the password and compares the hash under that lock: a log-in whose password was
// replaced after the comparison begins no session.
func (s *Service) insertSession(ctx context.Context, session Identity, passwordHash string, tokenHash []byte) (now time.Time, err error) {
	const sql = `
		WITH owner AS MATERIALIZED (
			SELECT id FROM users WHERE id = $2 AND password_hash = $5 FOR SHARE NOWAIT
		), session AS (
			INSERT INTO sessions (id, user_id) SELECT $1, id FROM owner RETURNING id
		)
		INSERT INTO refresh_tokens (hash, session_id, expires_at) SELECT $3, id, now() + $4::interval FROM session
		RETURNING created_at`
	err = s.locks.Do(ctx, session.UserID.String(), func() error {
		row := s.pool.QueryRow(ctx, sql, session.SessionID, session.UserID, tokenHash, refreshTokenLife, passwordHash)
		return postgres.AsLocked(row.Scan(&now))
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrInvalidCredentials
	}
	return now, err
}

// revokeOldest revokes a user's oldest sessions beyond maxSessions. It begins when the new
// session is committed: of log-ins at the same time, which don't exclude each other, the last
// one sees the sessions of all. It waits for no lock: a session that another log-in has locked
// is being revoked, and one that a refresh has locked stays until the next log-in.
func (s *Service) revokeOldest(ctx context.Context, userID uuid.UUID) error {
	const sql = `
		WITH beyond AS MATERIALIZED (
			SELECT id FROM sessions WHERE user_id = $1 AND revoked_at IS NULL
			ORDER BY created_at DESC, id DESC OFFSET $2 LIMIT $3
		), locked AS MATERIALIZED (
			SELECT id FROM sessions WHERE id IN (SELECT id FROM beyond) AND revoked_at IS NULL
			FOR NO KEY UPDATE SKIP LOCKED
		)
		UPDATE sessions SET revoked_at = now() WHERE id IN (SELECT id FROM locked)
		RETURNING id`
	rows, _ := s.pool.Query(ctx, sql, userID, maxSessions, maxRevoked) // CollectRows returns its error
	revoked, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	for _, id := range revoked {
		s.live.drop(id) // also after an error: it may have been committed
	}
	if err != nil {
		return fmt.Errorf("revoke the oldest sessions of user %s: %w", userID, err)
	}
	return nil
}

// Refresh spends a refresh token and returns the session's next pair. A spent token may be used once
// more within reuseLeeway, as long as no token that was given for it has been used; that returns
// another pair of the same session.
//
// ErrInvalidRefreshToken for a token that is unknown, expired or of a revoked session. Any other use
// of a spent token returns the same error and revokes the whole session: the client or a thief has
// a copy (RFC 9700, section 4.14.2). postgres.ErrLocked where other uses of the session's tokens
// keep it locked; the token is unchanged.
//
// After a crash before the commit the token is still valid. After a crash between the commit and the
// answer the client has a spent token: the leeway is for that. While commits wait for a synchronous
// standby that is away, no token is spent (confirm).
func (s *Service) Refresh(ctx context.Context, refreshToken string) (Tokens, error) {
	next := newRefreshToken()
	hash := hashRefreshToken(refreshToken)
	var held heldToken
	err := s.locks.Do(ctx, string(hash), func() error {
		const sql = `SELECT (` + postgres.ConfirmSQL + `) FROM refresh_tokens WHERE hash = $1` // an unknown token costs no flush
		if err := s.confirm(ctx, sql, hash); err != nil {
			return err
		}
		return postgres.Transact(ctx, s.pool, func(tx pgx.Tx) (err error) {
			held, err = use(ctx, tx, hash, hashRefreshToken(next))
			return err
		})
	})
	if held.Revoked || held.isReused() {
		s.live.drop(held.SessionID) // also after an error: it may have been committed
	}
	switch {
	case err != nil:
		return Tokens{}, fmt.Errorf("refresh: %w", err)
	case held.isReused():
		s.metrics.reuses.Inc()
		s.log.WarnContext(ctx, "spent refresh token used again; session revoked", "user_id", held.UserID, "session_id", held.SessionID)
		return Tokens{}, ErrInvalidRefreshToken
	case !held.isGood():
		return Tokens{}, ErrInvalidRefreshToken
	}
	tokens, err := s.tokens(held.Identity, next, held.Now)
	tokens.Email = held.Email
	return tokens, err
}

// heldToken is a refresh token as it stands while its session is locked. The
// zero value is an unknown one.
type heldToken struct {
	Identity
	Email   string // of its user
	Revoked bool   // its session
	Spent   bool
	Leeway  bool // spent, but may be used once more
	InTime  bool
	Now     time.Time // the transaction's
}

// isGood reports whether the token gives a pair. A token with Leeway was in time when it was spent.
func (t heldToken) isGood() bool {
	return !t.Revoked && (t.Leeway || !t.Spent && t.InTime)
}

// isReused reports whether the use of the token revokes its session.
func (t heldToken) isReused() bool {
	return !t.Revoked && t.Spent && !t.Leeway
}

// use does what the use of the token with the given hash requires, and returns the token as it was
// before. It returns no error for a bad token: what it wrote must be committed.
func use(ctx context.Context, tx pgx.Tx, hash, nextHash []byte) (heldToken, error) {
	held, err := lockToken(ctx, tx, hash)
	switch {
	case err != nil:
		return heldToken{}, err
	case held.isReused():
		err = revokeSession(ctx, tx, held.SessionID)
	case held.isGood():
		err = rotate(ctx, tx, held.SessionID, hash, nextHash)
	}
	return held, err
}

// lockToken locks the session of a refresh token and reads both; postgres.ErrLocked while
// another transaction has the session. The uses of a session's tokens follow one another: the
// token is read by a second statement, whose snapshot is taken under the lock.
func lockToken(ctx context.Context, tx pgx.Tx, hash []byte) (heldToken, error) {
	const sessionSQL = `
		SELECT id, user_id, (SELECT email FROM users WHERE users.id = user_id), revoked_at IS NOT NULL FROM sessions
		WHERE id = (SELECT session_id FROM refresh_tokens WHERE hash = $1)
		FOR UPDATE SKIP LOCKED`
	const readSQL = `
		SELECT spent_at IS NOT NULL, coalesce(NOT closed AND now() < spent_at + $2::interval, false), now() < expires_at, now()
		FROM refresh_tokens WHERE hash = $1`
	var held heldToken
	err := tx.QueryRow(ctx, sessionSQL, hash).Scan(&held.SessionID, &held.UserID, &held.Email, &held.Revoked)
	if errors.Is(err, pgx.ErrNoRows) {
		return heldToken{}, checkUnknown(ctx, tx, hash)
	}
	if err == nil {
		err = tx.QueryRow(ctx, readSQL, hash, reuseLeeway).Scan(&held.Spent, &held.Leeway, &held.InTime, &held.Now)
	}
	if err != nil {
		return heldToken{}, fmt.Errorf("lock session and read refresh token: %w", err)
	}
	return held, nil
}

// checkUnknown distinguishes a token that is unknown, or was pruned with its session meanwhile, from
// one whose session is locked: that is postgres.ErrLocked.
func checkUnknown(ctx context.Context, tx pgx.Tx, hash []byte) error {
	const sql = `SELECT EXISTS (SELECT FROM refresh_tokens WHERE hash = $1)`
	var known bool
	if err := tx.QueryRow(ctx, sql, hash).Scan(&known); err != nil {
		return fmt.Errorf("look for refresh token: %w", err)
	}
	if known {
		return postgres.ErrLocked
	}
	return nil
}

// rotate spends the token with the given hash and gives the session the next. A token
// that was spent before is closed: it gives no third pair. So is the one that this one was
// given for: its leeway ends with the first use of what it gave.
func rotate(ctx context.Context, tx pgx.Tx, sessionID uuid.UUID, hash, nextHash []byte) error {
	const sql = `
		WITH used AS (
			UPDATE refresh_tokens SET spent_at = coalesce(spent_at, now()), closed = spent_at IS NOT NULL
			WHERE hash = $2
			RETURNING parent
		), older AS (
			UPDATE refresh_tokens SET closed = true WHERE hash = (SELECT parent FROM used)
		)
		INSERT INTO refresh_tokens (hash, session_id, parent, expires_at) VALUES ($3, $1, $2, now() + $4::interval)`
	_, err := tx.Exec(ctx, sql, sessionID, hash, nextHash, refreshTokenLife)
	if err != nil {
		return fmt.Errorf("rotate refresh token of session %s: %w", sessionID, err)
	}
	return nil
}

func revokeSession(ctx context.Context, tx pgx.Tx, sessionID uuid.UUID) error {
	const sql = `UPDATE sessions SET revoked_at = now() WHERE id = $1`
	if _, err := tx.Exec(ctx, sql, sessionID); err != nil {
		return fmt.Errorf("revoke session %s: %w", sessionID, err)
	}
	return nil
}

// Revoke ends the session of a refresh token. It returns nil also for a session that is revoked.
// ErrInvalidRefreshToken for an unknown token.
// postgres.ErrLocked where uses of the session's tokens keep it locked; nothing happened.
func (s *Service) Revoke(ctx context.Context, refreshToken string) error {
	hash := hashRefreshToken(refreshToken)
	err := s.locks.Do(ctx, string(hash), func() error { return s.revoke(ctx, hash) })
	if err != nil {
		return fmt.Errorf("revoke session: %w", err)
	}
	return nil
}

func (s *Service) revoke(ctx context.Context, hash []byte) error {
	const sql = `
		WITH token AS (
			SELECT session_id FROM refresh_tokens WHERE hash = $1
		), locked AS MATERIALIZED (
			SELECT id FROM sessions WHERE id = (SELECT session_id FROM token) FOR NO KEY UPDATE SKIP LOCKED
		), revoked AS (
			UPDATE sessions SET revoked_at = coalesce(revoked_at, now()) WHERE id IN (SELECT id FROM locked) RETURNING id
		)
		SELECT session_id, EXISTS (SELECT FROM revoked) FROM token`
	var sessionID uuid.UUID
	var revoked bool
	err := s.pool.QueryRow(ctx, sql, hash).Scan(&sessionID, &revoked)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrInvalidRefreshToken
	case err != nil:
		return err
	case !revoked:
		return postgres.ErrLocked
	}
	s.live.drop(sessionID)
	return nil
}

func (s *Service) tokens(identity Identity, refreshToken string, now time.Time) (Tokens, error) {
	accessToken, err := s.access.sign(identity, now)
	if err != nil {
		return Tokens{}, err
	}
	return Tokens{
		AccessToken:      accessToken,
		ExpiresIn:        accessTokenLife,
		RefreshToken:     refreshToken,
		RefreshExpiresIn: refreshTokenLife,
	}, nil
}

func newRefreshToken() string {
	var random [refreshTokenBytes]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	return refreshTokenPrefix + base64.RawURLEncoding.EncodeToString(random[:])
}

func hashRefreshToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}
