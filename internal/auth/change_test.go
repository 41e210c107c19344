package auth

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestChangePassword(t *testing.T) {
	t.Parallel()
	const (
		next     = "cafe\u0301 sans lait" // é as NFD has it
		nextToo  = "caf\u00e9 sans lait"  // and as NFC has it
		tooShort = "short"
	)
	pool, clock := testenv.Pool(t), newClock()
	here, there := newService(t, pool, clock), newService(t, pool, clock)
	user, err := here.SignUp(t.Context(), "ann@example.com", testPassword)
	if err != nil {
		t.Fatal(err)
	}
	first, second := logIn(t, here, user.Email, testPassword), logIn(t, there, user.Email, testPassword)
	_, others := newSession(t, here)
	sessions := []Tokens{first, second}
	for _, s := range []*Service{here, there} { // both have seen them alive
		for _, tokens := range append(sessions, others) {
			wantAuthenticated(t, s, tokens.AccessToken)
		}
	}

	t.Run("ErrInvalidCredentials", func(t *testing.T) {
		for _, wrong := range []string{"", "wrong password", next, testPassword + " ", "\x00\xff"} {
			if err := here.ChangePassword(t.Context(), user.ID, wrong, next); !errors.Is(err, ErrInvalidCredentials) {
				t.Errorf("%q: got %v, want ErrInvalidCredentials", wrong, err)
			}
		}
	})
	t.Run("Fault", func(t *testing.T) {
		err := here.ChangePassword(t.Context(), user.ID, testPassword, tooShort)
		if fault, ok := errors.AsType[Fault](err); !ok || fault.Code != "too_short" {
			t.Errorf("got %v, want too_short", err)
		}
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		if err := here.ChangePassword(t.Context(), uuid.New(), testPassword, next); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	})
	for _, tokens := range sessions { // nothing has changed
		wantAuthenticated(t, here, tokens.AccessToken)
	}

	if err := here.ChangePassword(t.Context(), user.ID, testPassword, next); err != nil {
		t.Fatal(err)
	}

	for _, tokens := range sessions {
		wantUnauthenticated(t, here, tokens.AccessToken)
		for _, s := range []*Service{here, there} {
			wantInvalid(t, s, tokens.RefreshToken)
		}
	}
	clock.Advance(liveFor)
	for _, tokens := range sessions {
		wantUnauthenticated(t, there, tokens.AccessToken)
	}
	for _, s := range []*Service{here, there} {
		wantAuthenticated(t, s, others.AccessToken)
		if _, err := s.LogIn(t.Context(), user.Email, testPassword); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("with the old password: got %v, want ErrInvalidCredentials", err)
		}
		wantAuthenticated(t, s, logIn(t, s, user.Email, nextToo).AccessToken)
	}
	refresh(t, here, others.RefreshToken)
}

func logIn(t *testing.T, s *Service, email, password string) Tokens {
	t.Helper()
	tokens, err := s.LogIn(t.Context(), email, password)
	if err != nil {
		t.Fatalf("log in: %v", err)
	}
	return tokens
}

// Of changes that have all compared the same password, one happens.
func TestChangePassword_Concurrent(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, tokens := newSession(t, s)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = s.replacePassword(t.Context(), identity.UserID, noPassword, uuid.NewString()) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrInvalidCredentials):
			t.Errorf("got %v, want ErrInvalidCredentials", err)
		}
	}
	if won != 1 {
		t.Errorf("%d changes happened, want 1", won)
	}
	wantInvalid(t, s, tokens.RefreshToken)
}

// A log-in that has compared the old password begins no session once the change is committed: not
// after the commit, and not where it waits for it.
func TestChangePassword_LogInUnderWay(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, _ := newSession(t, s)
	tx := begin(t, s)
	if err := replaceHash(t.Context(), tx, identity.UserID, noPassword, "next"); err != nil {
		t.Fatal(err)
	}
	if _, err := revokeAll(t.Context(), tx, identity.UserID); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := s.startSession(t.Context(), identity.UserID, noPassword)
		waiting <- err
	}()
	testenv.Eventually(t, "the log-in to pause", func() bool {
		return s.locks.Pausing(identity.UserID.String()) == 1 || len(waiting) > 0
	})
	commit(t, tx)
	_, after := s.startSession(t.Context(), identity.UserID, noPassword)
	for _, err := range []error{<-waiting, after} {
		if !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("got %v, want ErrInvalidCredentials", err)
		}
	}
	if live := liveOf(t, s, identity.UserID); live != 0 {
		t.Errorf("%d sessions of the old password are alive", live)
	}
}

// A session that a log-in has inserted and not committed is revoked too: the change waits for it,
// without a connection.
func TestChangePassword_AfterALogInUnderWay(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, _ := newSession(t, s)
	tx := begin(t, s)
	if _, err := tx.Exec(t.Context(), `SELECT FROM users WHERE id = $1 FOR SHARE`, identity.UserID); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO sessions (id, user_id) VALUES ($1, $2)`, uuid.New(), identity.UserID); err != nil {
		t.Fatal(err)
	}
	changed := make(chan error, 1)
	go func() { changed <- s.replacePassword(t.Context(), identity.UserID, noPassword, "next") }()
	testenv.Eventually(t, "the change to pause", func() bool {
		return s.locks.Pausing(identity.UserID.String()) == 1 || len(changed) > 0
	})
	commit(t, tx)
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	if live := liveOf(t, s, identity.UserID); live != 0 {
		t.Errorf("%d sessions of the old password are alive", live)
	}
}

// A change waits for a refresh that is under way, and then revokes what the refresh gave.
func TestChangePassword_RefreshUnderWay(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, tokens := newSession(t, s)
	tx := begin(t, s)
	next := newRefreshToken()
	if held, err := use(t.Context(), tx, hashRefreshToken(tokens.RefreshToken), hashRefreshToken(next)); err != nil || !held.isGood() {
		t.Fatalf("got %+v, %v", held, err)
	}
	changed := make(chan error, 1)
	go func() { changed <- s.replacePassword(t.Context(), identity.UserID, noPassword, "next") }()
	testenv.Eventually(t, "the change to wait", func() bool {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`
		var waits bool
		return s.pool.QueryRow(t.Context(), sql).Scan(&waits) == nil && waits
	})
	commit(t, tx)
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	wantInvalid(t, s, next)
}

// Where Postgres ends the connection before the commit, neither the password nor a session has
// changed. Where it does so after the commit, both have, and this process knows it at once.
func TestChangePassword_LosesItsConnection(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		at      string // the statement that is not answered
		before  string // what Postgres does in its place
		changes bool
	}{
		"BetweenTheWrites": {at: "UPDATE sessions SET revoked_at"},
		"BeforeTheCommit":  {at: "commit"},
		"AfterTheCommit":   {at: "commit", before: "commit", changes: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tracer := &connectionLoss{}
			s := newService(t, tracedPool(t, tracer), newClock())
			identity, tokens := newSession(t, s)
			wantAuthenticated(t, s, tokens.AccessToken) // and is remembered
			tracer.lose(test.at, test.before)
			if err := s.replacePassword(t.Context(), identity.UserID, noPassword, "next"); err == nil {
				t.Fatal("the connection was not lost")
			}
			tracer.lose("", "")
			want := noPassword
			if test.changes {
				want = "next"
				wantUnauthenticated(t, s, tokens.AccessToken)
				wantInvalid(t, s, tokens.RefreshToken)
			} else {
				wantAuthenticated(t, s, tokens.AccessToken)
				refresh(t, s, tokens.RefreshToken)
			}
			if got, err := s.passwordHash(t.Context(), identity.UserID); err != nil || got != want {
				t.Errorf("the password is %q, %v, want %q", got, err, want)
			}
		})
	}
}

// connectionLoss closes the connection in place of a statement.
type connectionLoss struct {
	mu         sync.Mutex // guards the rest
	at, before string
}

func (l *connectionLoss) lose(at, before string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.before = at, before
}

func (l *connectionLoss) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != "" && strings.HasPrefix(data.SQL, l.at) {
		if l.before != "" {
			_ = conn.PgConn().Exec(ctx, l.before).Close()
		}
		_ = conn.PgConn().Conn().Close()
	}
	return ctx
}

func (l *connectionLoss) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A change and a log-in that find the user's row locked for long give up.
func TestChangePassword_ErrLocked(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	s.locks.For = 1
	identity, tokens := newSession(t, s)
	tx := begin(t, s)
	if _, err := tx.Exec(t.Context(), `SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE`, identity.UserID); err != nil {
		t.Fatal(err)
	}
	if err := s.replacePassword(t.Context(), identity.UserID, noPassword, "next"); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("change: got %v, want ErrLocked", err)
	}
	if _, err := s.startSession(t.Context(), identity.UserID, noPassword); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("log-in: got %v, want ErrLocked", err)
	}
	refresh(t, s, tokens.RefreshToken) // needs no lock of the user
	commit(t, tx)
	startSession(t, s, identity.UserID)
}

func begin(t *testing.T, s *Service) pgx.Tx {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	return tx
}

func liveOf(t *testing.T, s *Service, userID uuid.UUID) (live int) {
	t.Helper()
	const sql = `SELECT count(*) FROM sessions WHERE user_id = $1 AND revoked_at IS NULL`
	if err := s.pool.QueryRow(t.Context(), sql, userID).Scan(&live); err != nil {
		t.Fatal(err)
	}
	return live
}
