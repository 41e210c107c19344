package auth

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/text/unicode/norm"

	"github.com/passbook/passbook/internal/postgres"
)

// MaxEmailLen bounds an email, in bytes: the longest address that fits the path
// of RFC 5321, section 4.5.3.1.3 (RFC 3696, erratum 1690).
const MaxEmailLen = 254

// User is a user that may log in.
type User struct {
	ID        uuid.UUID // a UUIDv7
	Email     string    // as it was signed up with
	CreatedAt time.Time
}

// Fault is a fault in a value that a client sent.
type Fault struct {
	Code   string // stable, snake_case
	Detail string // for people; continues after the name of the field
}

func (f Fault) Error() string {
	return f.Detail
}

// SignUp makes a user. ErrEmailTaken where another user has the email (emails compare by EmailKey),
// a Fault where CheckEmail or CheckPassword refuses a value, ErrBusy where too many passwords are
// being hashed.
//
// A crash before the commit leaves nothing, a crash after it leaves the user: a client without an
// answer that tries again gets ErrEmailTaken, and can log in.
func (s *Service) SignUp(ctx context.Context, email, password string) (User, error) {
	if err := errors.Join(CheckEmail(email), CheckPassword(password)); err != nil {
		return User{}, fmt.Errorf("sign up: %w", err)
	}
	prepared, _ := preparePassword(password) // it has passed CheckPassword
	hash, err := s.passwords.hash(ctx, prepared)
	if err != nil {
		return User{}, fmt.Errorf("sign up: %w", err)
	}
	if err := s.confirm(ctx, postgres.ConfirmSQL); err != nil {
		return User{}, fmt.Errorf("sign up: %w", err)
	}
	user, err := s.insertUser(ctx, email, hash)
	if err != nil {
		return User{}, fmt.Errorf("sign up: %w", err)
	}
	return user, nil
}

const userColumns = `id, email, created_at`

// insertUser holds its connection while it waits for another sign-up with the same email: for one
// commit, since that transaction has only this statement. The slots for hashing passwords bound
// how many wait.
func (s *Service) insertUser(ctx context.Context, email, hash string) (User, error) {
	const sql = `
		INSERT INTO users (id, email, password_hash, email_key) VALUES ($1, $2, $3, $4)
		RETURNING ` + userColumns
	id, err := uuid.NewV7()
	if err != nil {
		return User{}, fmt.Errorf("make user id: %w", err)
	}
	user, err := s.queryUser(ctx, sql, id, email, hash, EmailKey(email))
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "23505" && pg.ConstraintName == "users_email" {
		return User{}, ErrEmailTaken
	}
	return user, err
}

// User reads a user; ErrNotFound where there is none.
func (s *Service) User(ctx context.Context, id uuid.UUID) (User, error) {
	const sql = `SELECT ` + userColumns + ` FROM users WHERE id = $1`
	user, err := s.queryUser(ctx, sql, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return User{}, ErrNotFound
	case err != nil:
		return User{}, fmt.Errorf("read user %s: %w", id, err)
	}
	return user, nil
}

func (s *Service) queryUser(ctx context.Context, sql string, args ...any) (User, error) {
	rows, _ := s.pool.Query(ctx, sql, args...) // CollectExactlyOneRow returns its error
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[User])
}

// CheckEmail returns a Fault unless email is a bare, plausible address (RFC 5322, addr-spec). It does
// not check whether mail arrives there.
func CheckEmail(email string) error {
	switch {
	case len(email) > MaxEmailLen:
		return Fault{"too_long", fmt.Sprintf("must have at most %d bytes", MaxEmailLen)}
	case !isAddress(email):
		return Fault{"invalid_format", "must be an email address, such as name@example.com"}
	}
	return nil
}

// isAddress also refuses what Postgres's text can't hold: NUL, and bytes that are not UTF-8. With a
// display name, angle brackets, comments, quotes or white space the parsed address differs from
// email.
func isAddress(email string) bool {
	if strings.ContainsFunc(email, isInvisible) {
		return false
	}
	address, err := mail.ParseAddress(email)
	return err == nil && address.Address == email
}

// isInvisible reports whether two emails that look the same may differ by r: a control or
// format character (zero width, bidirectional), a variation selector or another one that
// renderers ignore, a space, the blank of Braille, a character for private use or one that
// Unicode has not assigned.
func isInvisible(r rune) bool {
	return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == '\u2800' ||
		unicode.In(r, unicode.Zs, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// EmailKey returns the key by which emails compare, the same for NFC and NFD and for every case: the
// canonical decomposition (NFD, which any case of a letter shares) under simple case folding.
// Neither depends on a locale. users.email_key holds it, so a change of EmailKey must migrate that
// column.
func EmailKey(email string) string {
	return strings.Map(foldRune, norm.NFD.String(email))
}

// foldRune stands for all the runes that unicode.SimpleFold goes through from r: the
// smallest of them, but in lower case where that is a letter of ASCII.
func foldRune(r rune) rune {
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	if 'A' <= least && least <= 'Z' {
		return least + 'a' - 'A'
	}
	return least
}
