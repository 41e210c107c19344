package api

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	target := jobsOf(c.open(0), "deposits")
	const body = `{"amount":1}`
	long := strings.Repeat("k", 255)
	t.Run("Missing", func(t *testing.T) {
		t.Parallel()
		c.in(t).post(target, body).problem(http.StatusBadRequest, "idempotency_key_missing")
	})
	t.Run("Empty", func(t *testing.T) {
		t.Parallel()
		head := "POST " + target + " HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + c.token +
			"\r\nContent-Type: application/json\r\nContent-Length: 12\r\n"
		c.in(t).sendRaw(head+"Idempotency-Key:\r\n\r\n"+body).problem(http.StatusBadRequest, "idempotency_key_invalid")
		c.in(t).sendRaw(head+"Idempotency-Key: a\r\nIdempotency-Key: a\r\n\r\n"+body).problem(http.StatusBadRequest, "malformed_request")
	})
	invalid := map[string]string{
		"TooLong": long + "k", "QuotedTooLong": `"` + long + `k"`, "Space": "a b", "QuotedSpace": `"a b"`, "NotASCII": "ké",
		"QuotedEmpty": `""`, "Unclosed": `"abc`, "OneQuote": `"`, "AfterQuote": `"abc"d`, "Parameters": `"abc";a=1`,
		"BadEscape": `"a\b"`, "EscapeAtEnd": `"a\`, "Tab": "a\tb",
	}
	for name, key := range invalid {
		t.Run("Invalid/"+name, func(t *testing.T) {
			t.Parallel()
			c.in(t).post(target, body, "Idempotency-Key", key).problem(http.StatusBadRequest, "idempotency_key_invalid")
			c.in(t).post("/v1/accounts", `{}`, "Idempotency-Key", key).problem(http.StatusBadRequest, "idempotency_key_invalid")
		})
	}
	same := map[string][2]string{
		"Bare": {"bare", "bare"}, "Quoted": {`abc`, `"abc"`}, "Escaped": {`a"b\c`, `"a\"b\\c"`}, "Longest": {long, `"` + long + `"`},
		"LongestEscaped": {"x" + strings.Repeat(`"`, 254), `"x` + strings.Repeat(`\"`, 254) + `"`},
		"Symbols":        {"!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "\"!#$%&'()*+,-./:;<=>?@[]^_`{|}~\""},
	}
	for name, keys := range same {
		t.Run("OK/"+name, func(t *testing.T) {
			t.Parallel()
			first := c.in(t).post(target, body, "Idempotency-Key", keys[0]).want(http.StatusAccepted).wantNoHeader("Idempotent-Replayed")
			again := c.in(t).post(target, body, "Idempotency-Key", keys[1]).want(http.StatusAccepted).wantHeader("Idempotent-Replayed", "true")
			if string(first.body) != string(again.body) {
				t.Errorf("%s\n%s", first, again)
			}
		})
	}
	t.Run("CaseMatters", func(t *testing.T) {
		t.Parallel()
		c.in(t).post(target, body, "Idempotency-Key", "case").want(http.StatusAccepted)
		c.in(t).post(target, body, "Idempotency-Key", "CASE").want(http.StatusAccepted).wantNoHeader("Idempotent-Replayed")
	})
}

func TestIdempotencyKey_Reused(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, other := c.open(0), c.open(0)
	c.post(jobsOf(account, "deposits"), `{"amount":1,"description":"d"}`, "Idempotency-Key", "job").want(http.StatusAccepted)
	c.post("/v1/accounts", `{"currency":"EUR","initial_deposit":5}`, "Idempotency-Key", "opening").want(http.StatusCreated)
	tests := map[string]struct{ target, body, key string }{
		"Amount":             {jobsOf(account, "deposits"), `{"amount":2,"description":"d"}`, "job"},
		"Type":               {jobsOf(account, "withdrawals"), `{"amount":1,"description":"d"}`, "job"},
		"Account":            {jobsOf(other, "deposits"), `{"amount":1,"description":"d"}`, "job"},
		"Description":        {jobsOf(account, "deposits"), `{"amount":1,"description":"e"}`, "job"},
		"NoDescription":      {jobsOf(account, "deposits"), `{"amount":1}`, "job"},
		"EmptyDescription":   {jobsOf(account, "deposits"), `{"amount":1,"description":""}`, "job"},
		"JobOfOpening":       {jobsOf(account, "deposits"), `{"amount":1}`, "opening"},
		"OpeningOfJob":       {"/v1/accounts", `{}`, "job"},
		"Opening/Currency":   {"/v1/accounts", `{"currency":"USD","initial_deposit":5}`, "opening"},
		"Opening/NoCurrency": {"/v1/accounts", `{"initial_deposit":5}`, "opening"},
		"Opening/Deposit":    {"/v1/accounts", `{"currency":"EUR","initial_deposit":6}`, "opening"},
		"Opening/Number":     {"/v1/accounts", `{"number":"abcd","currency":"EUR","initial_deposit":5}`, "opening"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c.in(t).post(test.target, test.body, "Idempotency-Key", test.key).
				problem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		})
	}
	if found := ledgertest.Check(t, s.pool); found.Jobs != 1 || found.Accounts != 3 {
		t.Errorf("%+v, want 1 job and 3 accounts", found)
	}
	t.Run("KeyBelongsToItsCaller", func(t *testing.T) {
		stranger := s.user(t)
		stranger.post(jobsOf(stranger.open(0), "deposits"), `{"amount":7}`, "Idempotency-Key", "job").
			want(http.StatusAccepted).wantNoHeader("Idempotent-Replayed")
	})
}

// Refused requests spend no key.
func TestIdempotencyKey_NotSpentByRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.maxQueued = 1 })
	c := s.user(t)
	account, full, closed := c.open(0), c.open(0), c.open(0)
	c.ask(full, "deposits", 1)
	ledgertest.SetStatus(t, s.pool, closed.Number, ledger.Closed)
	refused := map[string]func(t *testing.T, key string){
		"malformed_body": func(t *testing.T, key string) {
			t.Helper()
			c.in(t).post(jobsOf(account, "deposits"), `{`, "Idempotency-Key", key).want(http.StatusBadRequest)
		},
		"invalid_request": func(t *testing.T, key string) {
			t.Helper()
			c.in(t).post(jobsOf(account, "deposits"), `{}`, "Idempotency-Key", key).want(http.StatusUnprocessableEntity)
		},
		"account_not_found": func(t *testing.T, key string) {
			t.Helper()
			c.in(t).post("/v1/accounts/nowhere/deposits", `{"amount":1}`, "Idempotency-Key", key).want(http.StatusNotFound)
		},
		"account_queue_full": func(t *testing.T, key string) {
			t.Helper()
			c.in(t).post(jobsOf(full, "deposits"), `{"amount":1}`, "Idempotency-Key", key).want(http.StatusTooManyRequests)
		},
		"account_closed": func(t *testing.T, key string) {
			t.Helper()
			c.in(t).post(jobsOf(closed, "deposits"), `{"amount":1}`, "Idempotency-Key", key).want(http.StatusConflict)
		},
		"number_taken": func(t *testing.T, key string) {
			t.Helper()
			c.in(t).post("/v1/accounts", `{"number":"`+account.Number+`"}`, "Idempotency-Key", key).want(http.StatusConflict)
		},
	}
	for name, refuse := range refused {
		t.Run(name, func(t *testing.T) {
			refuse(t, name)
			made := decode[jobJSON](c.in(t).post(jobsOf(account, "deposits"), `{"amount":2}`, "Idempotency-Key", name).
				want(http.StatusAccepted).wantNoHeader("Idempotent-Replayed"))
			s.apply(t, made.ID) // room for the next
		})
	}
}

// No request waits for a key that another request has locked: it gets its answer at once, spends
// nothing, and holds no connection.
func TestIdempotencyKey_Locked(t *testing.T) {
	t.Parallel()
	const conns, openings = 4, 50
	cfg, err := pgxpool.ParseConfig(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns, cfg.AfterConnect = conns, postgres.SecureSession
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := start(t, func(set *settings) { set.pool = pool })
	c, other := s.user(t), s.user(t)
	mine, theirs := c.open(0), other.open(0)
	release := holdKey(t, cfg.ConnConfig, ledger.KeyLock(c.userID, "locked"))
	var group sync.WaitGroup
	for i := range openings {
		group.Go(func() {
			c.in(t).post("/v1/accounts", `{}`, "Idempotency-Key", "locked").problem(http.StatusServiceUnavailable, "unavailable")
			c.in(t).post(jobsOf(mine, "deposits"), `{"amount":1}`, "Idempotency-Key", "locked").
				problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
		})
		group.Go(func() {
			testenv.Eventually(t, "a busy machine to accept the deposit", func() bool {
				return other.in(t).post(jobsOf(theirs, "deposits"), `{"amount":1}`, "Idempotency-Key", fmt.Sprint(i)).status == http.StatusAccepted
			})
		})
	}
	group.Wait()
	if waited := s.log.lines("request failed"); len(waited) > 0 {
		t.Errorf("%d requests waited for the key until their time was up: %s", len(waited), waited[0])
	}
	release()
	c.post("/v1/accounts", `{}`, "Idempotency-Key", "locked").want(http.StatusCreated).wantNoHeader("Idempotent-Replayed")
	if found := ledgertest.Check(t, s.pool); found.Jobs != openings || found.Accounts != 3 {
		t.Errorf("%+v, want %d jobs and 3 accounts", found, openings)
	}
}

// holdKey holds a key's lock, as an opening does, until release is called.
func holdKey(t *testing.T, cfg *pgx.ConnConfig, lock int64) (release func()) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, lock); err != nil {
			t.Fatal(err)
		}
	}
	exec(`SELECT pg_advisory_lock($1)`)
	return func() { exec(`SELECT pg_advisory_unlock($1)`) }
}

// A key is what these two expressions say, and quoting it changes nothing.
func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{
		``, `k`, `"k"`, `"`, `""`, `"a\"b"`, `"a\\b"`, `"a\b"`, `"a`, `a"b`, `"a"b`, `a b`, "a\x00", "\x7f", `"\`, `"é"`,
		strings.Repeat("k", 255), strings.Repeat("k", 256), `"` + strings.Repeat(`\\`, 255) + `"`,
	} {
		f.Add(seed)
	}
	bare := regexp.MustCompile(`^[!#-~][!-~]{0,254}$`)
	quoted := regexp.MustCompile(`^"((?:[!#-\[\]-~]|\\["\\]){1,255})"$`)
	unquote := strings.NewReplacer(`\"`, `"`, `\\`, `\`)
	quote := strings.NewReplacer(`"`, `\"`, `\`, `\\`)
	f.Fuzz(func(t *testing.T, text string) {
		want := bare.FindString(text)
		if match := quoted.FindStringSubmatch(text); match != nil {
			want = unquote.Replace(match[1])
		}
		key, ok := parseKey(text)
		if ok != (want != "") || ok && key != want || !ok && key != "" {
			t.Errorf("%q is %q, %t, want %q", text, key, ok, want)
		}
		if !ok {
			return
		}
		if again, ok := parseKey(`"` + quote.Replace(key) + `"`); !ok || again != key {
			t.Errorf("%q: %q quoted is %q, %t", text, key, again, ok)
		}
	})
}
