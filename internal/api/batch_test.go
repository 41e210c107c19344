package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

// batchOf is the body of a batch of deposits and withdrawals in turn, one for each key.
func batchOf(t *testing.T, keys ...string) string {
	t.Helper()
	jobs := make([]map[string]any, len(keys))
	for i, key := range keys {
		jobs[i] = map[string]any{"type": []string{"deposit", "withdrawal"}[i%2], "amount": 10 + i, "idempotency_key": key}
	}
	body, err := json.Marshal(map[string]any{"jobs": jobs})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func manyKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", n-i)
	}
	return keys
}

type batchJSON struct {
	Data []jobJSON `json:"data"`
}

// A batch is answered with its jobs in their order, which is the order in which they take effect.
func TestAcceptBatch(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	body := batchOf(t, manyKeys(job.MaxBatchJobs)...)
	a := c.post(jobsOf(account, "jobs"), body).want(http.StatusAccepted).
		wantHeader("Retry-After", "1").wantNoHeader("Idempotent-Replayed").wantNoHeader("Location")
	made := decode[batchJSON](a).Data
	if len(made) != job.MaxBatchJobs {
		t.Fatalf("%d jobs, want %d", len(made), job.MaxBatchJobs)
	}
	listed := walk[jobJSON](c, jobsOf(account, "jobs")+"?order=asc&limit=100", 100)
	for i, one := range made {
		if one.Amount != int64(10+i) || one.Account != account.Number || one.Status != "queued" || listed[i].ID != one.ID {
			t.Errorf("job %d is %+v, listed as %+v", i, one, listed[i])
		}
	}
	again := c.post(jobsOf(account, "jobs"), body).want(http.StatusAccepted).
		wantHeader("Retry-After", "1").wantHeader("Idempotent-Replayed", "true")
	if string(again.body) != string(a.body) {
		t.Errorf("accepted %s\nreplayed %s", a, again)
	}

	s.apply(t, made[0].ID)
	part := decode[batchJSON](c.post(jobsOf(account, "jobs"), body).want(http.StatusAccepted).wantHeader("Retry-After", "1")).Data
	if part[0].Status != "succeeded" || part[1].Status != "queued" {
		t.Errorf("with one job applied: %+v, %+v", part[0], part[1])
	}
	s.apply(t, made[len(made)-1].ID)
	finished := decode[batchJSON](c.post(jobsOf(account, "jobs"), body).want(http.StatusOK).
		wantNoHeader("Retry-After").wantHeader("Idempotent-Replayed", "true")).Data
	for i, one := range finished {
		if one.Status == "queued" || one.ID != made[i].ID {
			t.Errorf("job %d: %+v, want %s, finished", i, one, made[i].ID)
		}
	}
	if found := ledgertest.Check(t, s.pool); found.Jobs != job.MaxBatchJobs {
		t.Errorf("%d jobs, want %d", found.Jobs, job.MaxBatchJobs)
	}
}

// Keys of a batch and of single requests are the same keys.
func TestAcceptBatch_UsedKeys(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	target := jobsOf(account, "jobs")
	single := decode[jobJSON](c.post(jobsOf(account, "deposits"), `{"amount":10}`, "Idempotency-Key", "single").want(http.StatusAccepted))
	s.apply(t, single.ID)
	mixed := decode[batchJSON](c.post(target, batchOf(t, `"single"`, "new")).want(http.StatusAccepted).
		wantHeader("Retry-After", "1").wantNoHeader("Idempotent-Replayed")).Data
	if mixed[0].ID != single.ID || mixed[0].Status != "succeeded" || mixed[1].Status != "queued" {
		t.Errorf("a batch with a used key got %+v", mixed)
	}
	c.post(jobsOf(account, "withdrawals"), `{"amount":11}`, "Idempotency-Key", `"new"`).want(http.StatusAccepted).
		wantHeader("Idempotent-Replayed", "true").wantHeader("Location", "/v1/jobs/"+mixed[1].ID)
	c.post(target, batchOf(t, "other", "single", "new", "another")).
		problem(http.StatusUnprocessableEntity, "idempotency_key_reused",
			"/jobs/1/idempotency_key idempotency_key_reused", "/jobs/2/idempotency_key idempotency_key_reused")
	if found := ledgertest.Check(t, s.pool); found.Jobs != 2 {
		t.Errorf("%d jobs, want 2", found.Jobs)
	}
}

func TestAcceptBatch_Invalid(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	target := jobsOf(c.open(0), "jobs")
	one := func(member, value string) string {
		members := map[string]string{"type": `"deposit"`, "amount": "1", "idempotency_key": `"k"`, member: value}
		var text []string
		for name, value := range members {
			if value != "" {
				text = append(text, fmt.Sprintf("%q:%s", name, value))
			}
		}
		return `{"jobs":[{` + strings.Join(text, ",") + `}]}`
	}
	tests := map[string]struct {
		body   string
		faults []string
	}{
		"Missing":         {`{}`, []string{"/jobs required"}},
		"Null":            {`{"jobs":null}`, []string{"/jobs required"}},
		"Object":          {`{"jobs":{}}`, []string{"/jobs invalid_type"}},
		"Empty":           {`{"jobs":[]}`, []string{"/jobs out_of_range"}},
		"TooMany":         {batchOf(t, manyKeys(job.MaxBatchJobs+1)...), []string{"/jobs out_of_range"}},
		"NotObjects":      {`{"jobs":[1,null,[],"x"]}`, []string{"/jobs/0 invalid_type", "/jobs/1 invalid_type", "/jobs/2 invalid_type", "/jobs/3 invalid_type"}},
		"Unknown":         {`{"jobs":[{}],"x":1}`, []string{"/jobs/0/amount required", "/jobs/0/idempotency_key required", "/jobs/0/type required", "/x unknown_field"}},
		"UnknownInJob":    {one("x", "1"), []string{"/jobs/0/x unknown_field"}},
		"Type":            {one("type", `"transfer"`), []string{"/jobs/0/type invalid_value"}},
		"Type/Empty":      {one("type", `""`), []string{"/jobs/0/type invalid_value"}},
		"Type/Number":     {one("type", `1`), []string{"/jobs/0/type invalid_type"}},
		"Amount":          {one("amount", `1.0`), []string{"/jobs/0/amount invalid_type"}},
		"Description":     {one("description", `"\n"`), []string{"/jobs/0/description invalid_value"}},
		"Key/Missing":     {one("idempotency_key", ``), []string{"/jobs/0/idempotency_key required"}},
		"Key/Empty":       {one("idempotency_key", `""`), []string{"/jobs/0/idempotency_key invalid_value"}},
		"Key/Space":       {one("idempotency_key", `"a b"`), []string{"/jobs/0/idempotency_key invalid_value"}},
		"Key/Unclosed":    {one("idempotency_key", `"\"a"`), []string{"/jobs/0/idempotency_key invalid_value"}},
		"Key/Long":        {one("idempotency_key", `"`+strings.Repeat("k", 256)+`"`), []string{"/jobs/0/idempotency_key invalid_value"}},
		"Key/Twice":       {batchOf(t, "a", "b", "a", "b"), []string{"/jobs/2/idempotency_key repeated_key", "/jobs/3/idempotency_key repeated_key"}},
		"Key/TwiceQuoted": {batchOf(t, "a", `"a"`), []string{"/jobs/1/idempotency_key repeated_key"}},
		"EachJob": {
			`{"jobs":[{"type":"deposit","amount":0,"idempotency_key":"a"},{"type":"deposit","amount":1,"idempotency_key":"b"},{"type":"x","amount":1,"idempotency_key":"b"}]}`,
			[]string{"/jobs/0/amount out_of_range", "/jobs/2/idempotency_key repeated_key", "/jobs/2/type invalid_value"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c.in(t).post(target, test.body).problem(http.StatusUnprocessableEntity, "invalid_request", test.faults...)
		})
	}
	t.Run("Malformed", func(t *testing.T) {
		c.in(t).post(target, `{"jobs":[{"type":"deposit","type":"deposit"}]}`).problem(http.StatusBadRequest, "malformed_body")
		c.in(t).post(target, `{"jobs":[`).problem(http.StatusBadRequest, "malformed_body")
		c.in(t).post(target+"?x=1", batchOf(t, "k")).problem(http.StatusBadRequest, "invalid_parameter", "x unknown_parameter")
		c.in(t).post(target, batchOf(t, manyKeys(3000)...)).problem(http.StatusRequestEntityTooLarge, "body_too_large")
		c.in(t).post(target, batchOf(t, "k"), "Content-Type", "text/plain").problem(http.StatusUnsupportedMediaType, "unsupported_media_type")
	})
	if found := ledgertest.Check(t, s.pool); found.Jobs != 0 {
		t.Errorf("%d jobs, want none", found.Jobs)
	}
}

// A batch for an account that is not the caller's answers as for one that does not exist.
func TestAcceptBatch_AccountNotFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, stranger := s.user(t), s.user(t)
	account := c.open(0)
	missing := stranger.post("/v1/accounts/nowhere/jobs", batchOf(t, "k"), "X-Request-Id", "r").problem(http.StatusNotFound, "account_not_found")
	stranger.post(jobsOf(account, "jobs"), batchOf(t, "k"), "X-Request-Id", "r").sameAs(missing)
	stranger.post("/v1/accounts/abc/jobs", batchOf(t, "k"), "X-Request-Id", "r").sameAs(missing)
	if found := ledgertest.Check(t, s.pool); found.Jobs != 0 {
		t.Errorf("%d jobs, want none", found.Jobs)
	}
}

func TestAcceptBatch_QueueFull(t *testing.T) {
	t.Parallel()
	s := start(t, func(set *settings) { set.maxQueued = 3 })
	c := s.user(t)
	account := c.open(0)
	c.ask(account, "deposits", 1)
	c.post(jobsOf(account, "jobs"), batchOf(t, "a", "b", "c")).
		problem(http.StatusTooManyRequests, "account_queue_full").wantHeader("Retry-After", "1")
	c.post(jobsOf(account, "jobs"), batchOf(t, "a", "b")).want(http.StatusAccepted)
	c.post(jobsOf(account, "jobs"), batchOf(t, "a", "b")).want(http.StatusAccepted).wantHeader("Idempotent-Replayed", "true")
}

func TestAcceptBatch_LockedKey(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	release := holdKey(t, s.pool.Config().ConnConfig, ledger.KeyLock(c.userID, "b"))
	c.post(jobsOf(account, "jobs"), batchOf(t, "a", "b", "c")).
		problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
	c.post(jobsOf(account, "jobs"), batchOf(t, "a", "c")).want(http.StatusAccepted).wantNoHeader("Idempotent-Replayed")
	release()
	if found := ledgertest.Check(t, s.pool); found.Jobs != 2 {
		t.Errorf("%d jobs, want 2", found.Jobs)
	}
}

// A key finds the job that it made, whichever request made it, and no other user's.
func TestFindJob(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, stranger := s.user(t), s.user(t)
	account := c.open(0)
	const symbols, quotedKey = `a"b\c+&=#%`, `"a\"b\\c+&=#%"`
	made := decode[batchJSON](c.post(jobsOf(account, "jobs"), batchOf(t, "k", quotedKey)).want(http.StatusAccepted)).Data
	c.post("/v1/accounts", `{}`, "Idempotency-Key", "opening").want(http.StatusCreated)
	s.apply(t, made[0].ID)
	find := func(c client, key string) answer {
		c.t.Helper()
		return c.get("/v1/jobs?idempotency_key=" + url.QueryEscape(key)).want(http.StatusOK).wantNoHeader("Link")
	}
	const none = `{"data":[],"has_more":false,"next_cursor":null}`
	for key, want := range map[string]jobJSON{"k": made[0], `"k"`: made[0], symbols: made[1], quotedKey: made[1]} {
		single := c.get("/v1/jobs/" + want.ID).want(http.StatusOK)
		wantJSON(t, find(c, key), `{"data":[`+string(single.body)+`],"has_more":false,"next_cursor":null}`)
		wantJSON(t, find(stranger, key), none)
	}
	for _, key := range []string{"unused", "opening", "K"} {
		wantJSON(t, find(c, key), none)
	}
	for query, fault := range map[string]string{
		"":                       "idempotency_key required",
		"?idempotency_key=":      "idempotency_key invalid_value",
		"?idempotency_key=a%20b": "idempotency_key invalid_value",
		"?idempotency_key=%22a":  "idempotency_key invalid_value",
		"?idempotency_key=%00":   "idempotency_key invalid_value",
		"?idempotency_key=" + strings.Repeat("k", 256): "idempotency_key invalid_value",
		"?idempotency_key=k&idempotency_key=k":         "idempotency_key repeated_parameter",
		"?idempotency_key=k&limit=1":                   "limit unknown_parameter",
	} {
		c.get("/v1/jobs"+query).problem(http.StatusBadRequest, "invalid_parameter", fault)
	}
	c.get("/v1/jobs?idempotency_key=k", "Authorization", "").problem(http.StatusUnauthorized, "unauthenticated")
}
