package api

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/migrations"
)

// A database's locale changes nothing: neither Turkish, whose small I is ı, nor C, which
// knows no letter but those of ASCII.
func TestLocales(t *testing.T) {
	t.Parallel()
	postgres := testenv.EmptyPostgresServer(t)
	tests := map[string]struct{ options, lower string }{ // lower is what the locale makes of IÜ
		// The system may not have tr_TR.UTF-8, but Postgres's ICU has every locale.
		"turkish": {`LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C'`, "ıü"},
		"c":       {`LOCALE 'C'`, "iÜ"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := databaseWith(t, postgres.URL(), name, tt.options)
			var lower string
			if err := pool.QueryRow(t.Context(), `SELECT lower('IÜ')`).Scan(&lower); err != nil || lower != tt.lower {
				t.Fatalf("lower('IÜ') is %q, %v, want %q", lower, err, tt.lower)
			}
			s := start(t, func(set *settings) { set.pool = pool })
			wantOneUser(t, s, "INFO@example.com", "info@example.com")
			wantOneUser(t, s, "ÜNAL@EXAMPLE.COM", "ünal@example.com")
			wantDescription(t, s, strings.Repeat("한", 140))
		})
	}
}

func databaseWith(t *testing.T, address, name, options string) *pgxpool.Pool {
	t.Helper()
	admin, err := pgxpool.New(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.Exec(t.Context(), `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING 'UTF8' `+options); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	if _, err := migrations.Up(t.Context(), u.String()); err != nil {
		t.Fatal(err)
	}
	return openPool(t, u.String())
}

// wantOneUser signs up with an email, logs in with the other, and can't sign up with that.
func wantOneUser(t *testing.T, s *server, signedUp, logsIn string) {
	t.Helper()
	c := s.anonymous(t)
	credentials := func(email string) string { return `{"email":"` + email + `","password":"correct horse battery"}` }
	user := decode[userJSON](c.post("/v1/users", credentials(signedUp)).want(http.StatusCreated))
	c.token = decode[tokensJSON](c.post("/v1/sessions", credentials(logsIn)).want(http.StatusCreated)).AccessToken
	if me := decode[userJSON](c.get("/v1/users/me").want(http.StatusOK)); me != user {
		t.Errorf("logged in as %v, want %v", me, user)
	}
	c.post("/v1/users", credentials(logsIn)).problem(http.StatusConflict, "email_taken")
}

func wantDescription(t *testing.T, s *server, description string) {
	t.Helper()
	c := s.user(t)
	account := c.open(1)
	job := decode[jobJSON](c.post(jobsOf(account, "deposits"), `{"amount":1,"description":"`+description+`"}`, "Idempotency-Key", "k").want(http.StatusAccepted))
	s.apply(t, job.ID)
	entry := decode[transactionJSON](c.get("/v1/accounts/" + account.Number + "/transactions/2").want(http.StatusOK))
	if entry.Type != string(ledger.Deposit) || entry.Description == nil || *entry.Description != description {
		t.Errorf("got %v, want a deposit described as %q", entry, description)
	}
}
