package auth

import (
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A session is deleted with all its tokens, once none of them opens anything; until then all
// are kept, so that the reuse of a spent one is seen.
func TestPrune(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	_, expired := newSession(t, s)
	refresh(t, s, expired.RefreshToken)
	revokedID, revoked := newSession(t, s)
	if err := s.Revoke(t.Context(), revoked.RefreshToken); err != nil {
		t.Fatal(err)
	}
	liveID, first := newSession(t, s)
	pass(t, s, refreshTokenLife-time.Hour)
	second := refresh(t, s, first.RefreshToken)
	pass(t, s, time.Hour+2*keepExpired) // the first has expired, the second has not
	if _, err := s.pool.Exec(t.Context(), `UPDATE sessions SET created_at = created_at - interval '30 days' WHERE id <> $1`, revokedID.SessionID); err != nil {
		t.Fatal(err)
	}
	newSession(t, s)
	if _, err := s.pool.Exec(t.Context(), `UPDATE refresh_tokens SET expires_at = now() + interval '1 day' WHERE session_id = $1`, revokedID.SessionID); err != nil {
		t.Fatal(err)
	}
	pruner := NewPruner(s.pool)
	prune := func(want int64) {
		t.Helper()
		if got, err := pruner.Prune(t.Context()); err != nil || got != want {
			t.Errorf("pruned %d, %v, want %d", got, err, want)
		}
	}
	prune(1) // the expired one
	if _, err := s.pool.Exec(t.Context(), `UPDATE sessions SET revoked_at = now() - $1::interval WHERE id = $2`, 2*keepRevoked, revokedID.SessionID); err != nil {
		t.Fatal(err)
	}
	prune(0) // it has come to the end
	prune(1) // the one that was revoked long ago
	var tokens int
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM refresh_tokens WHERE session_id = $1`, liveID.SessionID).Scan(&tokens); err != nil || tokens != 2 {
		t.Errorf("the live session has %d tokens, %v, want 2", tokens, err)
	}
	wantInvalid(t, s, first.RefreshToken) // and the theft is seen
	wantInvalid(t, s, second.RefreshToken)
}
