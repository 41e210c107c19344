package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

// history makes an account with an opening and n jobs, and reads what came of
// it, the oldest first.
func history(s *server, c client, n int) (accountJSON, []transactionJSON) {
	c.t.Helper()
	account := c.open(1000)
	for i := range n {
		s.apply(c.t, c.ask(account, []string{"deposits", "withdrawals", "withdrawals"}[i%3], int64(i+1)).ID)
	}
	all := walk[transactionJSON](c, jobsOf(account, "transactions")+"?order=asc&limit=100", 100)
	if len(all) != n+1 {
		c.t.Fatalf("%d transactions, want %d", len(all), n+1)
	}
	return account, all
}

func TestTransaction(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(50)
	a := c.post(jobsOf(account, "withdrawals"), `{"amount":20,"description":"<books> & \"tea\" ☕"}`, "Idempotency-Key", "k").want(http.StatusAccepted)
	made := decode[jobJSON](a)
	s.apply(t, made.ID)
	finished := decode[jobJSON](c.get("/v1/jobs/" + made.ID).want(http.StatusOK))

	first := c.get(jobsOf(account, "transactions/1")).want(http.StatusOK)
	wantJSON(t, first, fmt.Sprintf(`{"seq":1,"type":"deposit","amount":50,"balance_after":50,"description":null,"job_id":null,"created_at":%q}`,
		decode[transactionJSON](first).CreatedAt))
	second := decode[transactionJSON](c.get(jobsOf(account, "transactions/2")).want(http.StatusOK))
	if *second.JobID != made.ID || second.Type != "withdrawal" || second.Amount != 20 || second.BalanceAfter != 30 ||
		*second.Description != "<books> & \"tea\" ☕" || second.CreatedAt != *finished.FinishedAt || finished.Transaction.Seq != 2 {
		t.Errorf("got %+v of %+v", second, finished)
	}

	missing := c.get(jobsOf(account, "transactions/3"), "X-Request-Id", "r").problem(http.StatusNotFound, "transaction_not_found")
	for _, seq := range []string{"0", "-1", "01", "%2B1", "1.0", "x", "9223372036854775808", "9223372036854775807", uuid.NewString()} {
		c.get(jobsOf(account, "transactions/"+seq), "X-Request-Id", "r").sameAs(missing)
	}
}

func TestListTransactions(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, all := history(s, c, 11)
	history(s, c, 2) // another account's are another's
	// Times stand between, on and around those of the history.
	at := func(i int) string { return all[i].CreatedAt }
	times := []string{"", at(0), before(t, at(4)), at(4), after(t, at(4)), at(11), after(t, at(11)), "2000-01-01T00:00:00Z", "2100-01-01T00:00:00+09:00"}
	for _, kind := range []string{"", "all", "deposit", "withdrawal"} {
		for _, from := range times {
			for _, to := range times {
				t.Run(fmt.Sprintf("%s/%s/%s", kind, from, to), func(t *testing.T) {
					t.Parallel()
					var want []transactionJSON
					for _, transaction := range all {
						if (kind == "" || kind == "all" || transaction.Type == kind) &&
							(from == "" || !instant(t, transaction.CreatedAt).Before(instant(t, from))) &&
							(to == "" || instant(t, transaction.CreatedAt).Before(instant(t, to))) {
							want = append(want, transaction)
						}
					}
					query := url.Values{"limit": {"3"}}
					for name, value := range map[string]string{"type": kind, "from": from, "to": to} {
						if value != "" {
							query.Set(name, value)
						}
					}
					wantTransactions(t, walk[transactionJSON](c.in(t), jobsOf(account, "transactions")+"?order=asc&"+query.Encode(), 3), want)
					slices.Reverse(want)
					wantTransactions(t, walk[transactionJSON](c.in(t), jobsOf(account, "transactions")+"?"+query.Encode(), 3), want)
				})
			}
		}
	}
}

// A list by time goes on after a transaction, whether its cursor names that by its
// time or, as the build before does, by its seq.
func TestListTransactions_Places(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, all := history(s, c, 5)
	for query, page := range map[string]statement.Page{
		"order=asc":                           {},
		"order=asc&type=all":                  {},
		"order=asc&from=2000-01-01T00:00:00Z": {From: instant(t, "2000-01-01T00:00:00Z")},
		"order=asc&to=2100-01-01T00:00:00Z":   {To: instant(t, "2100-01-01T00:00:00Z")},
		"order=asc&type=withdrawal":           {Type: ledger.Withdrawal},
	} {
		page.Account, page.Ascending = ledger.Owned{UserID: c.userID, Number: account.Number}, true
		want := slices.DeleteFunc(slices.Clone(all[3:]), func(transaction transactionJSON) bool {
			return page.Type != "" && transaction.Type != string(page.Type)
		})
		last := ledger.Transaction{Seq: all[2].Seq, CreatedAt: instant(t, all[2].CreatedAt)}
		for _, cursor := range []string{
			HistoryCursor(firstKey.Secret, page, last),
			newCursors([][]byte{firstKey.Secret}).encode(historyList(page), last.Seq),
		} {
			answer := c.get(jobsOf(account, "transactions") + "?" + query + "&cursor=" + cursor).want(http.StatusOK)
			wantTransactions(t, decode[pageJSON[transactionJSON]](answer).Data, want)
		}
	}
}

func instant(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func before(t *testing.T, text string) string {
	t.Helper()
	return instant(t, text).Add(-time.Microsecond).Format(time.RFC3339Nano)
}

func after(t *testing.T, text string) string {
	t.Helper()
	return instant(t, text).Add(time.Microsecond).Format(time.RFC3339Nano)
}

func wantTransactions(t *testing.T, got, want []transactionJSON) {
	t.Helper()
	text := func(transactions []transactionJSON) (seqs []string) {
		for _, transaction := range transactions {
			seqs = append(seqs, fmt.Sprint(transaction.Seq, transaction.Type, transaction.CreatedAt))
		}
		return seqs
	}
	if !slices.Equal(text(got), text(want)) {
		t.Errorf("got %v\nwant %v", text(got), text(want))
	}
}

func TestListTransactions_Limits(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, all := history(s, c, 7)
	for limit := 1; limit <= 100; limit++ {
		if limit > 10 && limit < 99 {
			continue // no page so long, and none of them differs
		}
		wantTransactions(t, walk[transactionJSON](c, jobsOf(account, "transactions")+"?order=asc&limit="+strconv.Itoa(limit), limit), all)
	}
}

// A time finer than a microsecond, in another zone, with a plus that was not
// escaped, or at the end of what there is, means what it says.
func TestListTransactions_Times(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, all := history(s, c, 2)
	second := instant(t, all[1].CreatedAt)
	seoul := time.FixedZone("", 9*3600)
	tests := map[string]struct {
		query string
		seqs  []int64
	}{
		"From/Nanosecond":     {"from=" + second.Add(time.Nanosecond).Format(time.RFC3339Nano), []int64{3}},
		"From/NanosecondLess": {"from=" + second.Add(-time.Nanosecond).Format(time.RFC3339Nano), []int64{2, 3}},
		"To/Nanosecond":       {"to=" + second.Add(time.Nanosecond).Format(time.RFC3339Nano), []int64{1, 2}},
		"To/NanosecondLess":   {"to=" + second.Add(-time.Nanosecond).Format(time.RFC3339Nano), []int64{1}},
		"From/Zone":           {"from=" + url.QueryEscape(second.In(seoul).Format(time.RFC3339Nano)), []int64{2, 3}},
		"To/Year9999":         {"to=9999-12-31T23:59:59.999999Z", []int64{1, 2, 3}},
		"From/Year9999":       {"from=9999-12-31T23:59:59.999999Z", nil},
		"FromAfterTo":         {"from=2100-01-01T00:00:00Z&to=2000-01-01T00:00:00Z", nil},
		"FromIsTo":            {"from=" + all[1].CreatedAt + "&to=" + all[1].CreatedAt, nil},
		"To/Year1":            {"to=0001-01-01T00:00:01Z", nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seqs []int64
			for _, found := range walk[transactionJSON](c.in(t), jobsOf(account, "transactions")+"?order=asc&limit=1&"+test.query, 1) {
				seqs = append(seqs, found.Seq)
			}
			if !slices.Equal(seqs, test.seqs) {
				t.Errorf("got %v, want %v", seqs, test.seqs)
			}
		})
	}
	t.Run("YearZero", func(t *testing.T) {
		t.Parallel()
		for _, at := range []string{"0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00%2B01:00"} {
			c.in(t).get(jobsOf(account, "transactions")+"?to="+at).problem(http.StatusBadRequest, "invalid_parameter", "to invalid_format")
		}
	})
	t.Run("PlusNotEscaped", func(t *testing.T) {
		t.Parallel()
		escaped, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+jobsOf(account, "transactions"), nil)
		if err != nil {
			t.Fatal(err)
		}
		escaped.Header.Set("Authorization", "Bearer "+c.token)
		a := c.in(t).sendRawAs(escaped, "GET "+jobsOf(account, "transactions")+"?from="+second.In(seoul).Format(time.RFC3339Nano)+
			"&order=asc&limit=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer "+c.token+"\r\n\r\n")
		if page := decode[pageJSON[transactionJSON]](a); len(page.Data) != 1 || page.Data[0].Seq != 2 || !page.HasMore {
			t.Errorf("got %s", a)
		}
	})
}
