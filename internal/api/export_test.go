package api

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// readCSV is what a CSV answer says, in the terms of a JSON one.
func readCSV(a answer) (all []transactionJSON) {
	a.t.Helper()
	a.want(http.StatusOK).wantHeader("Content-Type", "text/csv; charset=utf-8; header=present").wantHeader("Vary", "Accept")
	lines, err := csv.NewReader(strings.NewReader(string(a.body))).ReadAll()
	if err != nil {
		a.t.Fatalf("%v\n%s", err, a)
	}
	if want := []string{"seq", "type", "amount", "balance_after", "description", "job_id", "created_at"}; len(lines) == 0 || !slices.Equal(lines[0], want) {
		a.t.Fatalf("got %s\nwant %v first", a, want)
	}
	number := func(text string) int64 {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			a.t.Error(err)
		}
		return n
	}
	optional := func(text string) *string {
		if text == "" {
			return nil
		}
		return &text
	}
	for _, line := range lines[1:] {
		all = append(all, transactionJSON{
			Seq: number(line[0]), Type: line[1], Amount: number(line[2]), BalanceAfter: number(line[3]),
			Description: optional(line[4]), JobID: optional(line[5]), CreatedAt: line[6],
		})
	}
	return all
}

func TestExport(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, all := history(s, c, 40)
	target := jobsOf(account, "transactions")
	for name, query := range map[string]string{
		"All":         "?order=asc",
		"NewestFirst": "?",
		"Type":        "?type=withdrawal",
		"Times":       "?from=" + all[10].CreatedAt + "&to=" + all[35].CreatedAt + "&type=all",
		"Nothing":     "?to=2000-01-01T00:00:00Z",
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			want := walk[transactionJSON](c, target+query+"&limit=9", 9)
			a := c.get(target+query, "Accept", "text/csv")
			a.wantHeader("Content-Disposition", fmt.Sprintf("attachment; filename=%q", account.Number+".csv"))
			got := readCSV(a)
			if fmt.Sprint(asText(got)) != fmt.Sprint(asText(want)) {
				t.Errorf("got %v\nwant %v", asText(got), asText(want))
			}
		})
	}
	t.Run("Negotiated", func(t *testing.T) {
		c := c.in(t)
		for accept, isCSV := range map[string]bool{
			"text/csv": true, "text/*": true, "text/csv, application/json;q=0.5": true, "text/csv;q=0.5, application/json": false,
			"text/csv; charset=UTF-8": true, "text/csv;header=absent": false, "*/*": false, "application/json": false, "text/html": false, "application/*, text/csv;q=0.1": false,
		} {
			a := c.get(target, "Accept", accept).want(http.StatusOK).wantHeader("Vary", "Accept")
			if got := strings.HasPrefix(a.header.Get("Content-Type"), "text/csv"); got != isCSV {
				t.Errorf("Accept: %s is answered with %s", accept, a.header.Get("Content-Type"))
			}
		}
	})
	t.Run("Head", func(t *testing.T) {
		a := c.in(t).send(http.MethodHead, target, "", "Accept", "text/csv").want(http.StatusOK)
		if len(a.body) > 0 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/csv") {
			t.Errorf("got %s", a)
		}
	})
	t.Run("Refused", func(t *testing.T) {
		c := c.in(t)
		c.get(target+"?limit=5&cursor=x&from=x", "Accept", "text/csv").
			problem(http.StatusBadRequest, "invalid_parameter", "limit unknown_parameter", "cursor unknown_parameter", "from invalid_format")
		s.user(t).get(target, "Accept", "text/csv").problem(http.StatusNotFound, "account_not_found")
		s.anonymous(t).get(target, "Accept", "text/csv").problem(http.StatusUnauthorized, "unauthenticated")
	})
}

func asText(transactions []transactionJSON) (lines []string) {
	text := func(s *string) string {
		if s == nil {
			return "-"
		}
		return *s
	}
	for _, t := range transactions {
		lines = append(lines, fmt.Sprintln(t.Seq, t.Type, t.Amount, t.BalanceAfter, text(t.Description), text(t.JobID), t.CreatedAt))
	}
	return lines
}

// Cells that a spreadsheet would run are text to it, and the others are as they
// were.
func TestExport_Descriptions(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	descriptions := map[string]string{
		`x;=1+1;y`: `x;'=1+1;y`, `'=1+1;=1+2`: `'=1+1;'=1+2`, `";=1+1`: `";'=1+1`, `x;@SUM(1)`: `x;'@SUM(1)`, `a, -1`: `a, -1`, `a,-1`: `a,'-1`,
		`x;"=1`: `x;"'=1`, `a - b; c+d`: `a - b; c+d`,
		`=1+1`: `'=1+1`, `+1`: `'+1`, `-1`: `'-1`, `@SUM(A1)`: `'@SUM(A1)`, `＝1`: `'＝1`,
		`'=1`: `'=1`, `tea = "books", twice`: `tea = "books", twice`, `☕`: `☕`, ` =1`: ` =1`, `a-b`: `a-b`,
	}
	var last string
	for description := range descriptions {
		body := fmt.Sprintf(`{"amount":1,"description":%q}`, description)
		last = decode[jobJSON](c.post(jobsOf(account, "deposits"), body, "Idempotency-Key", keyOf(description)).want(http.StatusAccepted)).ID
	}
	s.apply(t, last)
	asked := walk[transactionJSON](c, jobsOf(account, "transactions")+"?limit=100", 100)
	exported := readCSV(c.get(jobsOf(account, "transactions"), "Accept", "text/csv"))
	if len(asked) != len(descriptions) || len(exported) != len(asked) {
		t.Fatalf("%d transactions, %d exported, want %d", len(asked), len(exported), len(descriptions))
	}
	marked := c.get(jobsOf(account, "transactions")+"?bom=true", "Accept", "text/csv").want(http.StatusOK)
	if !strings.HasPrefix(string(marked.body), "\xef\xbb\xbfseq,") {
		t.Errorf("with bom=true the export begins with %.20q", marked.body)
	}
	for i := range asked {
		if want := descriptions[*asked[i].Description]; *exported[i].Description != want {
			t.Errorf("%q is exported as %q, want %q", *asked[i].Description, *exported[i].Description, want)
		}
	}
}

func keyOf(description string) string { return fmt.Sprintf("%x", description) }

// exportBuffer is the size of each socket's buffer that an export goes through: the kernel
// would take megabytes of one that its client does not read.
const exportBuffer = 64 << 10

// setBuffer sets the size of a buffer, of what a listener accepts too.
func setBuffer(option int) func(network, address string, conn syscall.RawConn) error {
	return func(_, _ string, conn syscall.RawConn) (err error) {
		controlErr := conn.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, exportBuffer)
		})
		return errors.Join(err, controlErr)
	}
}

// startExporting serves through small buffers.
func startExporting(t *testing.T, edit func(*API)) *server {
	t.Helper()
	return start(t, func(set *settings) { set.edit, set.control = edit, setBuffer(syscall.SO_SNDBUF) })
}

// largeHistory makes one that no buffer on the way to a client holds.
func largeHistory(t *testing.T, s *server, c client) accountJSON {
	t.Helper()
	const entries = 20_000 // of some 180 bytes: 20 times the buffers, which Linux doubles
	account := c.open(0)
	ledgertest.Exec(t, s.pool, `DROP TRIGGER IF EXISTS transactions_rules ON transactions`) // which ask for jobs
	ledgertest.Exec(t, s.pool, `
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at, description)
		SELECT id, seq, 'deposit', 1, seq, timestamptz '2026-01-01' + seq * interval '1 s', repeat('long ', 20)
		FROM accounts, generate_series(1, $2) seq WHERE number = $1`, account.Number, entries)
	ledgertest.Exec(t, s.pool, `ALTER TABLE accounts DISABLE TRIGGER USER`) // which see one transaction come at a time
	ledgertest.Exec(t, s.pool, `UPDATE accounts SET last_seq = $2::bigint, balance = $2::bigint, last_at = timestamptz '2026-01-01' + $2::bigint * interval '1 s'
		WHERE number = $1`, account.Number, entries)
	return account
}

// beginExport sends a request for one and reads the beginning of its answer.
func beginExport(c client, account accountJSON) (net.Conn, *bufio.Reader) {
	c.t.Helper()
	conn := sendExport(c, account, "HTTP/1.1")
	reader := bufio.NewReader(conn)
	line, err := reader.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		c.t.Fatalf("got %s, %v", line, err)
	}
	return conn, reader
}

func sendExport(c client, account accountJSON, version string) net.Conn {
	c.t.Helper()
	dialer := net.Dialer{Control: setBuffer(syscall.SO_RCVBUF)}
	conn, err := dialer.DialContext(c.t.Context(), "tcp", c.server.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "GET %s %s\r\nHost: h\r\nAccept: text/csv\r\nAuthorization: Bearer %s\r\n\r\n",
		jobsOf(account, "transactions"), version, c.token)
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// underWay counts the API's exports.
func (s *server) underWay() int {
	s.api.exports.mu.Lock()
	defer s.api.exports.mu.Unlock()
	return len(s.api.exports.cancels)
}

// wantNoReading fails the test where exports that wait for their clients hold a
// connection, or a snapshot that the sweep and each hot account would pay for.
func (s *server) wantNoReading(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, "exports to wait for their clients", func() bool {
		var open int
		err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
				AND (state <> 'idle' OR backend_xmin IS NOT NULL)`).Scan(&open)
		if err != nil {
			t.Fatal(err)
		}
		return open == 0 && s.pool.Stat().AcquiredConns() == 0
	})
}

// Clients that read slowly, or not at all, keep no other user from exporting. A user
// has one export at a time; one whose client is gone makes room.
func TestExport_SlowReaders(t *testing.T) {
	t.Parallel()
	s := startExporting(t, func(a *API) { a.exports.grace = time.Hour })
	var clients []client
	var accounts []accountJSON
	var conns []net.Conn
	for range maxReadings + 1 {
		clients = append(clients, s.user(t))
		accounts = append(accounts, largeHistory(t, s, clients[len(clients)-1]))
	}
	another := s.user(t)
	anothers := another.open(1)
	for i, c := range clients {
		conn, _ := beginExport(c, accounts[i])
		conns = append(conns, conn)
		c.get(jobsOf(accounts[i], "transactions"), "Accept", "text/csv").problem(http.StatusTooManyRequests, "too_many_requests")
	}
	s.wantNoReading(t)
	for range 200 {
		if all := readCSV(another.get(jobsOf(anothers, "transactions"), "Accept", "text/csv")); len(all) != 1 {
			t.Errorf("got %v", all)
		}
	}
	_ = conns[0].Close()
	testenv.Eventually(t, "room for the user's next", func() bool { return s.underWay() == len(clients)-1 })
	readCSV(clients[0].get(jobsOf(accounts[0], "transactions")+"?to=2026-01-02T00:00:00Z", "Accept", "text/csv"))
}

// Exports are bounded: each has a page in memory.
func TestExport_TooMany(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(1)
	var ends []func()
	for range maxExports {
		_, end, err := s.api.exports.begin(t.Context(), uuid.New())
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	c.get(jobsOf(account, "transactions"), "Accept", "text/csv").problem(http.StatusTooManyRequests, "too_many_requests")
	for _, end := range ends {
		end()
	}
	readCSV(c.get(jobsOf(account, "transactions"), "Accept", "text/csv"))
}

// A stop does not wait for exports, whose clients may take them slowly.
func TestExport_IsCutOff(t *testing.T) {
	t.Parallel()
	// A page of some 180 KB has three seconds: long enough for its first lines to be sent.
	const rate = 60 << 10
	tooSlow := func(a *API) { a.exports.grace, a.exports.rate = 0, rate }
	for name, test := range map[string]struct {
		edit func(*API)
		cut  func(*testing.T, *server, *bufio.Reader)
	}{
		"AtAStop": {func(*API) {}, func(t *testing.T, s *server, _ *bufio.Reader) {
			t.Helper()
			if err := s.api.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if n := s.underWay(); n != 0 {
				t.Errorf("%d exports are on their way after the stop", n)
			}
		}},
		"AfterTooLong": {func(a *API) { a.exports.longest = 3 * time.Second }, func(*testing.T, *server, *bufio.Reader) {}},
		"TakenByNone":  {tooSlow, func(*testing.T, *server, *bufio.Reader) {}},
		// Some of each page is taken, and so nothing ever waits for long.
		"TakenTooSlowly": {tooSlow, func(t *testing.T, s *server, reader *bufio.Reader) {
			t.Helper()
			testenv.Eventually(t, "a slow export to be cut off", func() bool {
				_, _ = reader.Discard(100)
				return s.underWay() == 0
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startExporting(t, test.edit)
			c := s.user(t)
			account := largeHistory(t, s, c)
			_, reader := beginExport(c, account)
			test.cut(t, s, reader)
			testenv.Eventually(t, "a word of it in the log", func() bool { return len(s.log.lines("export cut off")) == 1 })
			testenv.Eventually(t, "room for exports", func() bool { return s.underWay() == 0 })
			wantCutOff(t, reader)
		})
	}
}

func wantCutOff(t *testing.T, reader io.Reader) {
	t.Helper()
	rest, err := io.ReadAll(reader)
	if err == nil && strings.HasSuffix(string(rest), "\r\n0\r\n\r\n") {
		t.Errorf("an export that was cut off after %d bytes ended as if it were whole", len(rest))
	}
}

// A part of an export does not look like all of it.
func TestExport_FailsOnTheWay(t *testing.T) {
	t.Parallel()
	s := startExporting(t, func(*API) {})
	c := s.user(t)
	account := largeHistory(t, s, c)
	_, reader := beginExport(c, account)
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions RENAME TO elsewhere`)
	wantCutOff(t, reader)
	testenv.Eventually(t, "a word of it in the log", func() bool { return len(s.log.lines("export cut off")) == 1 })
	testenv.Eventually(t, "room for exports", func() bool { return s.underWay() == 0 })
}

// Only chunks distinguish a part from the whole; HTTP/1.0 has none.
func TestExport_NeedsChunks(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	conn := sendExport(c, c.open(1), "HTTP/1.0")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), `"code":"http_version_not_supported"`) || strings.Contains(string(answer), "chunked") {
		t.Errorf("got %s, %v", answer, err)
	}
}

func TestExport_Unavailable(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.timeout = requestTimeout })
	c := s.user(t)
	account := c.open(1)
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions RENAME TO elsewhere`)
	c.get(jobsOf(account, "transactions"), "Accept", "text/csv").problem(http.StatusInternalServerError, "internal_error")
	ledgertest.Exec(t, s.pool, `ALTER TABLE elsewhere RENAME TO transactions`)
	locked, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = locked.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := locked.Exec(t.Context(), `LOCK TABLE transactions IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	c.get(jobsOf(account, "transactions"), "Accept", "text/csv").problem(http.StatusServiceUnavailable, "unavailable")
	if err := locked.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := readCSV(c.get(jobsOf(account, "transactions"), "Accept", "text/csv")); len(all) != 1 {
		t.Errorf("got %v", all)
	}
	if n := s.underWay(); n != 0 {
		t.Errorf("%d exports are on their way, want none", n)
	}
}

func TestBalance(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, all := history(s, c, 5)
	target := jobsOf(account, "balance")
	type balanceJSON struct {
		Number, Currency, At string
		Balance, Seq         int64
	}
	want := func(query string, balance, seq int64) balanceJSON {
		t.Helper()
		got := decode[balanceJSON](c.get(target + query).want(http.StatusOK))
		if got.Number != account.Number || got.Currency != "KRW" || got.Balance != balance || got.Seq != seq {
			t.Errorf("%s: got %+v, want %d after %d", query, got, balance, seq)
		}
		return got
	}
	now := want("", all[5].BalanceAfter, 6)
	if at := instant(t, now.At); time.Since(at).Abs() > time.Minute || at.Before(instant(t, all[5].CreatedAt)) {
		t.Errorf("now is %s", now.At)
	}
	for i, transaction := range all {
		earlier := int64(0)
		if i > 0 {
			earlier = all[i-1].BalanceAfter
		}
		at := instant(t, transaction.CreatedAt)
		if got := want("?at="+transaction.CreatedAt, transaction.BalanceAfter, transaction.Seq); got.At != transaction.CreatedAt {
			t.Errorf("at %s, want %s", got.At, transaction.CreatedAt)
		}
		want("?at="+at.Add(time.Nanosecond).Format(time.RFC3339Nano), transaction.BalanceAfter, transaction.Seq)
		want("?at="+at.Add(-time.Nanosecond).Format(time.RFC3339Nano), earlier, transaction.Seq-1)
	}
	last := instant(t, all[5].CreatedAt)
	zoned := url.QueryEscape(last.In(time.FixedZone("", 9*60*60)).Format(time.RFC3339Nano))
	if got := want("?at="+zoned, all[5].BalanceAfter, 6); got.At != all[5].CreatedAt {
		t.Errorf("at %s, want %s", got.At, all[5].CreatedAt)
	}
	// A time to come is answered for now.
	if got := want("?at=2100-01-01T09:00:00%2B09:00", all[5].BalanceAfter, 6); instant(t, got.At).Before(last) || instant(t, got.At).After(time.Now()) {
		t.Errorf("at %s", got.At)
	}
	want("?at=0001-01-01T00:00:01Z", 0, 0)
	c.get(target+"?at=x&to=1").problem(http.StatusBadRequest, "invalid_parameter", "at invalid_format", "to unknown_parameter")
	c.get(target+"?at=0001-01-01T00:00:00.0000001Z").problem(http.StatusBadRequest, "invalid_parameter", "at invalid_format")
	s.user(t).get(target).problem(http.StatusNotFound, "account_not_found")
}
