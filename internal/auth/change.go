package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
)

// ChangePassword replaces a user's password and revokes every session of the user, the caller's too.
// A Fault where CheckPassword refuses next, ErrInvalidCredentials where current is not the password
// or another change has replaced it meanwhile, ErrNotFound for a user that does not exist, ErrBusy
// where too many passwords are being hashed, postgres.ErrLocked where log-ins or another change keep
// the user's row locked. In all these cases nothing has changed.
//
// A crash before the commit leaves the password and the sessions as they were. After a crash between
// the commit and the answer only the new password logs in, and no earlier token is accepted: the
// client that tries again gets ErrUnauthenticated, and logs in with the new password.
func (s *Service) ChangePassword(ctx context.Context, userID uuid.UUID, current, next string) error {
	if err := CheckPassword(next); err != nil {
		return fmt.Errorf("change password: %w", err)
	}
	hash, err := s.passwordHash(ctx, userID)
	if err == nil {
		err = s.checkPassword(ctx, current, hash)
	}
	if err != nil {
		return fmt.Errorf("change password: %w", err)
	}
	prepared, _ := preparePassword(next) // it has passed CheckPassword
	nextHash, err := s.passwords.hash(ctx, prepared)
	if err != nil {
		return fmt.Errorf("change password: %w", err)
	}
	if err := s.confirm(ctx, postgres.ConfirmSQL); err != nil {
		return fmt.Errorf("change password: %w", err)
	}
	if err := s.replacePassword(ctx, userID, hash, nextHash); err != nil {
		return fmt.Errorf("change password: %w", err)
	}
	return nil
}

func (s *Service) passwordHash(ctx context.Context, userID uuid.UUID) (hash string, err error) {
	const sql = `SELECT password_hash FROM users WHERE id = $1`
	err = s.pool.QueryRow(ctx, sql, userID).Scan(&hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("read the password of user %s: %w", userID, err)
	}
	return hash, nil
}

// replacePassword replaces the hash and revokes the sessions in one transaction.
func (s *Service) replacePassword(ctx context.Context, userID uuid.UUID, hash, nextHash string) error {
	var revoked []uuid.UUID
	err := s.locks.Do(ctx, userID.String(), func() error {
		return postgres.Transact(ctx, s.pool, func(tx pgx.Tx) (err error) {
			if err = replaceHash(ctx, tx, userID, hash, nextHash); err == nil {
				revoked, err = revokeAll(ctx, tx, userID)
			}
			return err
		})
	})
	for _, id := range revoked {
		s.live.drop(id) // also after an error: it may have been committed
	}
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "password changed; sessions revoked", "user_id", userID, "sessions", len(revoked))
	return nil
}

// replaceHash locks the user's row until the transaction ends. So a log-in (insertSession) either has
// committed its session, which revokeAll then finds, or has to find its password again.
// ErrInvalidCredentials where the hash is no longer the user's.
func replaceHash(ctx context.Context, tx pgx.Tx, userID uuid.UUID, hash, nextHash string) error {
	const sql = `
		UPDATE users SET password_hash = $3
		WHERE id = (SELECT id FROM users WHERE id = $1 AND password_hash = $2 FOR NO KEY UPDATE NOWAIT)`
	tag, err := tx.Exec(ctx, sql, userID, hash, nextHash)
	switch {
	case err != nil:
		return fmt.Errorf("replace the password of user %s: %w", userID, postgres.AsLocked(err))
	case tag.RowsAffected() == 0:
		return ErrInvalidCredentials
	}
	return nil
}

// revokeAll revokes the user's sessions and returns them. It waits for a refresh that has one locked,
// for the few statements until that commit: a thief who refreshes all the time can't keep a session
// out of it. A transaction that has a session locked waits for no other row, so there is no deadlock.
func revokeAll(ctx context.Context, tx pgx.Tx, userID uuid.UUID) ([]uuid.UUID, error) {
	const sql = `UPDATE sessions SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL RETURNING id`
	rows, _ := tx.Query(ctx, sql, userID) // CollectRows returns its error
	revoked, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("revoke the sessions of user %s: %w", userID, postgres.AsLocked(err))
	}
	return revoked, nil
}
