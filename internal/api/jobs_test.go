package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

func TestAccept(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	a := c.post(jobsOf(account, "deposits"), `{"amount":100,"description":"birthday"}`, "Idempotency-Key", "k").
		want(http.StatusAccepted).wantHeader("Retry-After", "1").wantNoHeader("Idempotent-Replayed")
	made := decode[jobJSON](a)
	a.wantHeader("Location", "/v1/jobs/"+made.ID)
	wantJSON(t, a, fmt.Sprintf(`{"id":%q,"account":%q,"type":"deposit","amount":100,"currency":"KRW","description":"birthday",
		"status":"queued","failure":null,"transaction":null,"created_at":%q,"finished_at":null}`, made.ID, account.Number, made.CreatedAt))

	read := c.get(a.header.Get("Location")).want(http.StatusOK).wantHeader("Retry-After", "1")
	again := c.post(jobsOf(account, "deposits"), `{"amount":100,"description":"birthday"}`, "Idempotency-Key", "k").
		want(http.StatusAccepted).wantHeader("Idempotent-Replayed", "true").wantHeader("Retry-After", "1").
		wantHeader("Location", "/v1/jobs/"+made.ID)
	if string(read.body) != string(a.body) || string(again.body) != string(a.body) {
		t.Errorf("accepted %s\nread %s\nreplayed %s", a, read, again)
	}

	s.apply(t, made.ID)
	finished := c.post(jobsOf(account, "deposits"), `{"amount":100,"description":"birthday"}`, "Idempotency-Key", "k").
		want(http.StatusOK).wantHeader("Idempotent-Replayed", "true").wantNoHeader("Retry-After").
		wantHeader("Location", "/v1/jobs/"+made.ID)
	read = c.get("/v1/jobs/" + made.ID).want(http.StatusOK).wantNoHeader("Retry-After")
	if string(read.body) != string(finished.body) {
		t.Errorf("read %s\nreplayed %s", read, finished)
	}
	if found := ledgertest.Check(t, s.pool); found.Jobs != 1 {
		t.Errorf("%d jobs, want 1", found.Jobs)
	}
}

// wantJSON compares what the texts mean.
func wantJSON(t *testing.T, got answer, want string) {
	t.Helper()
	normal := func(text []byte) string {
		var v map[string]json.RawMessage
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if normal(got.body) != normal([]byte(want)) {
		t.Errorf("got %s\nwant %s", got.body, want)
	}
}

func TestJob_EachStatus(t *testing.T) {
	t.Parallel()
	const largest = 9007199254740991
	s := start(t)
	c := s.user(t)
	tests := []struct {
		status, kind, failure string
		balance, amount       int64
	}{
		{"succeeded", "deposits", "", 50, 100},
		{"succeeded", "withdrawals", "", 100, 100},
		{"succeeded", "deposits", "", 1, largest - 1},
		{"rejected", "withdrawals", "insufficient_funds", 99, 100},
		{"rejected", "withdrawals", "insufficient_funds", 0, largest},
		{"rejected", "deposits", "balance_limit_exceeded", largest, 1},
		{"rejected", "deposits", "balance_limit_exceeded", 1, largest},
		{"failed", "deposits", "internal_error", 50, 13},
	}
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s/%s/%d", test.status, test.failure, test.amount), func(t *testing.T) {
			c := c.in(t)
			account := c.open(test.balance)
			queued := c.ask(account, test.kind, test.amount)
			s.apply(t, queued.ID)
			a := c.get("/v1/jobs/" + queued.ID).want(http.StatusOK).wantNoHeader("Retry-After")
			got := decode[jobJSON](a)
			if got.FinishedAt == nil || *got.FinishedAt < got.CreatedAt {
				t.Fatalf("finished before it was accepted: %s", a)
			}
			failure, transaction, balance := "null", "null", test.balance
			if test.failure != "" {
				if got.Failure == nil || got.Failure.Detail == "" {
					t.Fatalf("no detail: %s", a)
				}
				failure = fmt.Sprintf(`{"code":%q,"detail":%s}`, test.failure, quoted(got.Failure.Detail))
			} else {
				balance += map[string]int64{"deposits": 1, "withdrawals": -1}[test.kind] * test.amount
				seq := min(test.balance, 1) + 1 // an opening with nothing is no transaction
				transaction = fmt.Sprintf(`{"seq":%d,"balance_after":%d,"created_at":%q}`, seq, balance, *got.FinishedAt)
			}
			wantJSON(t, a, fmt.Sprintf(`{"id":%q,"account":%q,"type":%q,"amount":%d,"currency":"KRW","description":null,
				"status":%q,"failure":%s,"transaction":%s,"created_at":%q,"finished_at":%q}`,
				queued.ID, account.Number, strings.TrimSuffix(test.kind, "s"), test.amount,
				test.status, failure, transaction, queued.CreatedAt, *got.FinishedAt))
			if now := decode[accountJSON](c.get("/v1/accounts/" + account.Number).want(http.StatusOK)); now.Balance != balance {
				t.Errorf("balance %d, want %d", now.Balance, balance)
			}
			if strings.Contains(string(a.body), "unlucky") {
				t.Errorf("internal text: %s", a)
			}
		})
	}
	ledgertest.Check(t, s.pool)
}

func quoted(text string) string {
	out, _ := json.Marshal(text) // a string always marshals
	return string(out)
}

// Withdraw too much and see why not; then the account goes on.
func TestJobs_InOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(10)
	var last jobJSON
	for i := range 10 {
		last = c.ask(account, []string{"deposits", "withdrawals"}[i%2], int64(10*(i+1)))
	}
	s.apply(t, last.ID)
	balance := int64(10)
	for i, made := range walk[jobJSON](c, jobsOf(account, "jobs")+"?order=asc&limit=3", 3) {
		amount := int64(10 * (i + 1))
		switch {
		case made.Type == "deposit":
			balance += amount
		case balance >= amount:
			balance -= amount
		default:
			if made.Status != "rejected" {
				t.Errorf("job %d: %+v", i, made)
			}
			continue
		}
		if made.Status != "succeeded" || made.Transaction == nil || made.Transaction.BalanceAfter != balance {
			t.Errorf("job %d: %+v, want a balance of %d", i, made, balance)
		}
	}
	if now := decode[accountJSON](c.get("/v1/accounts/" + account.Number).want(http.StatusOK)); now.Balance != balance {
		t.Errorf("balance %d, want %d", now.Balance, balance)
	}
	ledgertest.Check(t, s.pool)
}

func TestListJobs(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account, other := c.open(0), c.open(0)
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	c.ask(other, "deposits", 1)
	byStatus := map[string][]string{}
	add := func(made jobJSON, status string) {
		if status != "queued" {
			s.apply(t, made.ID)
		}
		byStatus[status] = append(byStatus[status], made.ID)
		byStatus[""] = append(byStatus[""], made.ID)
	}
	for range 3 {
		add(c.ask(account, "deposits", 1), "succeeded")
		add(c.ask(account, "withdrawals", 1000), "rejected")
		add(c.ask(account, "deposits", 13), "failed")
	}
	for range 4 {
		add(c.ask(account, "deposits", 1), "queued")
	}
	for _, status := range []string{"", "queued", "succeeded", "rejected", "failed"} {
		for _, order := range []string{"", "desc", "asc"} {
			for _, limit := range []int{1, 2, 3, 4, 100} {
				t.Run(fmt.Sprintf("status=%s/order=%s/limit=%d", status, order, limit), func(t *testing.T) {
					want := slices.Clone(byStatus[status])
					if order != "asc" {
						slices.Reverse(want)
					}
					target := jobsOf(account, "jobs") + "?limit=" + strconv.Itoa(limit)
					for name, value := range map[string]string{"status": status, "order": order} {
						if value != "" {
							target += "&" + name + "=" + value
						}
					}
					var got []string
					for _, found := range walk[jobJSON](c.in(t), target, limit) {
						got = append(got, found.ID)
						if status != "" && found.Status != status || found.Account != account.Number {
							t.Errorf("found %+v", found)
						}
					}
					if !slices.Equal(got, want) {
						t.Errorf("got %v, want %v", got, want)
					}
				})
			}
		}
	}
}

// A page is of twenty, unless it is asked for otherwise.
func TestListJobs_DefaultLimit(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	ledgertest.Exec(t, s.pool, `
		INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, account.id, user_id, 'deposit', n, n
		FROM accounts account, generate_series(1, 201) n`)
	for target, limit := range map[string]int{"": 20, "?limit=100": 100} {
		if got := walk[jobJSON](c, jobsOf(account, "jobs")+target, limit); len(got) != 201 {
			t.Errorf("%q: %d jobs, want 201", target, len(got))
		}
	}
}

func TestJobNotFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, stranger := s.user(t), s.user(t)
	made := c.ask(c.open(0), "deposits", 1)
	missing := c.get("/v1/jobs/"+uuid.Must(uuid.NewV7()).String(), "X-Request-Id", "r").problem(http.StatusNotFound, "job_not_found")
	stranger.get("/v1/jobs/"+made.ID, "X-Request-Id", "r").sameAs(missing)
	for _, id := range []string{"1", "x", "{" + made.ID + "}", "urn:uuid:" + made.ID, strings.ReplaceAll(made.ID, "-", ""), "%00"} {
		c.get("/v1/jobs/"+id, "X-Request-Id", "r").sameAs(missing)
	}
	if found := decode[jobJSON](c.get("/v1/jobs/" + strings.ToUpper(made.ID)).want(http.StatusOK)); found.ID != made.ID {
		t.Errorf("the id in capitals finds %s, want %s", found.ID, made.ID)
	}
}

func TestAccountNotFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, stranger := s.user(t), s.user(t)
	account := c.open(5)
	s.apply(t, c.ask(account, "deposits", 1).ID)
	for _, path := range []string{"", "/jobs", "/jobs?status=queued", "/transactions", "/transactions?type=deposit", "/transactions/1", "/transactions/99"} {
		t.Run("GET"+path, func(t *testing.T) {
			t.Parallel()
			c, stranger := c.in(t), stranger.in(t)
			missing := stranger.get("/v1/accounts/nowhere"+path, "X-Request-Id", "r").problem(http.StatusNotFound, "account_not_found")
			stranger.get("/v1/accounts/"+account.Number+path, "X-Request-Id", "r").sameAs(missing)
			for _, number := range []string{"abc", "a%20bcd", strings.Repeat("1", 35), "%00%00%00%00", "abcd%0a"} {
				c.get("/v1/accounts/"+number+path, "X-Request-Id", "r").sameAs(missing)
			}
		})
	}
	for _, kind := range []string{"deposits", "withdrawals"} {
		for _, body := range []string{`{"amount":1}`, `{"amount":0}`, `{`} {
			t.Run("POST/"+kind+body, func(t *testing.T) {
				t.Parallel()
				stranger := stranger.in(t)
				missing := stranger.post("/v1/accounts/nowhere/"+kind, body, "X-Request-Id", "r", "Idempotency-Key", "k")
				if body == `{"amount":1}` {
					missing.problem(http.StatusNotFound, "account_not_found")
				}
				stranger.post(jobsOf(account, kind), body, "X-Request-Id", "r", "Idempotency-Key", "k").sameAs(missing)
				stranger.post("/v1/accounts/abc/"+kind, body, "X-Request-Id", "r", "Idempotency-Key", "k").sameAs(missing)
			})
		}
	}
}

func TestAccountQueueFull(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.maxQueued = 2 })
	c := s.user(t)
	account := c.open(0)
	first := c.ask(account, "deposits", 1)
	c.ask(account, "withdrawals", 1)
	c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k").
		problem(http.StatusTooManyRequests, "account_queue_full").wantHeader("Retry-After", "1")
	c.ask(c.open(0), "deposits", 1) // another account has room
	s.apply(t, first.ID)
	c.post(jobsOf(account, "deposits"), `{"amount":1}`, "Idempotency-Key", "k").want(http.StatusAccepted).wantNoHeader("Idempotent-Replayed")
}
