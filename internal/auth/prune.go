package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// prunePage is how many sessions a Prune checks.
	prunePage = 1000
	// keepExpired is longer than any transaction: a refresh that found its token in time has ended
	// before the token is deleted.
	keepExpired = time.Minute
	// keepRevoked is how long the rows of a revoked session are kept.
	keepRevoked = 24 * time.Hour
)

// Pruner deletes sessions that have ended. It is for one goroutine.
type Pruner struct {
	pool  *pgxpool.Pool
	after uuid.UUID // the last session that was checked
}

// NewPruner prunes the sessions in the database behind pool.
func NewPruner(pool *pgxpool.Pool) *Pruner {
	return &Pruner{pool: pool}
}

// Prune checks the next prunePage sessions. It deletes each session whose last token has expired, or
// which was revoked long ago, with all its tokens. So while any token of a session is accepted,
// Refresh still finds all its spent ones, and detects their reuse.
//
// A crash leaves the page as it was, or pruned.
func (p *Pruner) Prune(ctx context.Context) (deleted int64, err error) {
	const lastSQL = `SELECT id FROM (SELECT id FROM sessions WHERE id > $1 ORDER BY id LIMIT $2) page ORDER BY id DESC LIMIT 1`
	const pruneSQL = `
		WITH over AS MATERIALIZED (
			SELECT id FROM sessions
			WHERE id > $1 AND id <= $2
				AND (revoked_at < now() - $3::interval
					OR created_at < now() - $4::interval AND NOT EXISTS (
						SELECT FROM refresh_tokens WHERE session_id = sessions.id AND expires_at > now() - $4::interval))
			FOR UPDATE SKIP LOCKED
		), tokens AS (
			DELETE FROM refresh_tokens WHERE session_id IN (SELECT id FROM over)
		)
		DELETE FROM sessions WHERE id IN (SELECT id FROM over)`
	var last uuid.UUID
	err = p.pool.QueryRow(ctx, lastSQL, p.after, prunePage).Scan(&last)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		p.after = uuid.Nil // begin again
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("prune sessions: %w", err)
	}
	tag, err := p.pool.Exec(ctx, pruneSQL, p.after, last, keepRevoked, keepExpired)
	if err != nil {
		return 0, fmt.Errorf("prune sessions: %w", err)
	}
	p.after = last
	return tag.RowsAffected(), nil
}
