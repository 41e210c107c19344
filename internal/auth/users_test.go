package auth

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/text/unicode/norm"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestCheckEmail(t *testing.T) {
	t.Parallel()
	const domain = "@example.com"
	tests := map[string]struct {
		email string
		code  string // empty: good
	}{
		"OK":                           {"ann@example.com", ""},
		"OK/Tag":                       {"Ann.O'Hara+bank@mail.example.com", ""},
		"OK/Unicode":                   {"앤@example.com", ""},
		"OK/Longest":                   {strings.Repeat("a", 254-len(domain)) + domain, ""},
		"too_long":                     {strings.Repeat("a", 255-len(domain)) + domain, "too_long"},
		"invalid_format/Empty":         {"", "invalid_format"},
		"invalid_format/NoAt":          {"ann.example.com", "invalid_format"},
		"invalid_format/NoDomain":      {"ann@", "invalid_format"},
		"invalid_format/NoName":        {"@example.com", "invalid_format"},
		"invalid_format/Two":           {"ann@example.com,bob@example.com", "invalid_format"},
		"invalid_format/DisplayName":   {"Ann <ann@example.com>", "invalid_format"},
		"invalid_format/AngleBrackets": {"<ann@example.com>", "invalid_format"},
		"invalid_format/Comment":       {"ann@example.com (Ann)", "invalid_format"},
		"invalid_format/Space":         {" ann@example.com", "invalid_format"},
		"invalid_format/NUL":           {"ann\x00@example.com", "invalid_format"},
		"invalid_format/Control":       {"ann\u0085@example.com", "invalid_format"},
		"invalid_format/LineBreak":     {"ann@example.com\r\nBcc: bob@example.com", "invalid_format"},
		"invalid_format/NotUTF8":       {"ann\xff@example.com", "invalid_format"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, CheckEmail(tt.email), tt.code)
		})
	}
}

// FuzzCheckEmail: what is good can be stored, and is an address alone.
func FuzzCheckEmail(f *testing.F) {
	for _, seed := range []string{"ann@example.com", "Ann <ann@example.com>", "\"ann\xff\"@[127.0.0.1]", "\"a b\"@example.com", "ann@example.com (Ann)", "@", "é@é.fr", "a@b,c@d"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, email string) {
		if CheckEmail(email) != nil {
			return
		}
		name, domain, _ := strings.Cut(email, "@")
		if name == "" || domain == "" || len(email) > 254 || !utf8.ValidString(email) || strings.ContainsAny(email, "<>(), \t\r\n\x00") {
			t.Errorf("accepted %q", email)
		}
	})
}

func TestSignUp(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	user, err := s.SignUp(t.Context(), "Ann@Example.com", testPassword)

	t.Run("OK", func(t *testing.T) {
		if err != nil || user.Email != "Ann@Example.com" || user.ID.Version() != 7 || time.Since(user.CreatedAt).Abs() > time.Minute {
			t.Fatalf("got %+v, %v", user, err)
		}
		if got, err := s.User(t.Context(), user.ID); err != nil || got != user {
			t.Errorf("read back: got %+v, %v, want %+v", got, err, user)
		}
	})
	t.Run("ErrEmailTaken", func(t *testing.T) {
		if _, err := s.SignUp(t.Context(), "aNN@example.COM", testPassword); !errors.Is(err, ErrEmailTaken) {
			t.Errorf("got %v, want ErrEmailTaken", err)
		}
	})
	t.Run("Fault", func(t *testing.T) {
		_, err := s.SignUp(t.Context(), "bob", testPassword)
		wantFault(t, err, "invalid_format")
		_, err = s.SignUp(t.Context(), "bob@example.com", "short")
		wantFault(t, err, "too_short")
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		if _, err := s.User(t.Context(), uuid.New()); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	})
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Emails compare the same whatever the database's locale, and passwords however they were typed.
func TestSignUp_Forms(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	const nfc = "\ud55c\uae00\ub9d0\uc528\ubbf8\ub974\uac00\ub78c\ub2e4\ub77c" // ten syllables
	password := map[string]string{"NFC": nfc, "NFD": norm.NFD.String(nfc)}
	tests := map[string]struct{ signedUp, logsIn string }{
		"ASCII":     {"INFO@example.com", "info@example.com"},
		"Umlaut":    {"\u00dcNAL@example.com", "\u00fcnal@example.com"},
		"NFC":       {"\u00e9@example.com", "e\u0301@example.com"},
		"NFDCase":   {"E\u0301t\u00e9@example.com", "\u00e9T\u00c9@EXAMPLE.com"},
		"NoCapital": {"\u01f0@example.com", "J\u030c@example.com"},
		"Sigma":     {"\u03c3\u03c2@example.com", "\u03a3\u03a3@example.com"},
	}
	for name, tt := range tests { // one after another: two hashes at once may have to wait, which ends in ErrBusy
		t.Run(name, func(t *testing.T) {
			if _, err := s.SignUp(t.Context(), tt.signedUp, password["NFC"]); err != nil {
				t.Fatal(err)
			}
			if _, err := s.LogIn(t.Context(), tt.logsIn, password["NFD"]); err != nil {
				t.Errorf("log in: %v", err)
			}
			if _, err := s.SignUp(t.Context(), tt.logsIn, password["NFC"]); !errors.Is(err, ErrEmailTaken) {
				t.Errorf("second sign-up: %v, want ErrEmailTaken", err)
			}
		})
	}
}

// What another locale, or full folding, would take for the same stays apart, and the
// key of ASCII is its small letters.
func TestEmailKey(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]string{{"I", "\u0131"}, {"i", "\u0130"}, {"\u00df", "ss"}, {"a", "b"}} {
		if EmailKey(pair[0]) == EmailKey(pair[1]) {
			t.Errorf("%q and %q are one", pair[0], pair[1])
		}
	}
	for r := range rune(128) {
		if got, want := EmailKey(string(r)), strings.ToLower(string(r)); got != want {
			t.Errorf("key of %q is %q, want %q", r, got, want)
		}
	}
}

func TestCheckEmail_Invisible(t *testing.T) {
	t.Parallel()
	for _, r := range "\u200b\u200d\u2060\ufeff\u00ad\u034f\u061c\u115f\u3164\uffa0\u180b\u180e\ufe0f\U000e0100\U000e0041" +
		"\u202e\u2066\u2028\u2029\u00a0\u3000\u2800\ue000\u0378\U000effff\u0085" {
		wantFault(t, CheckEmail("an"+string(r)+"n@example.com"), "invalid_format")
	}
	for _, email := range []string{"\u00e9@example.com", "e\u0301@example.com", "\ud55c\uae00@example.com", "\U0001f600@example.com"} {
		wantFault(t, CheckEmail(email), "")
	}
}
