package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// client is a user of the API, and knows only what the API responds.
type client struct {
	t      testing.TB
	system *system
	http   *http.Client
	token  string
	user   map[string]string // whose it is: email and password
	prefer string            // the Prefer header of its requests; empty for none
	watch  func(seen)        // where set, sees every answer
}

// seen is a request's response or error.
type seen struct {
	method string
	status int
	header http.Header
	body   []byte
	took   time.Duration
	err    error // no answer came
}

type account struct {
	Number  string `json:"number"`
	Balance int64  `json:"balance"`
	LastSeq int64  `json:"last_seq"`
}

type jobAnswer struct {
	ID        string `json:"id"`
	Type      string `json:"type"`
	Amount    int64  `json:"amount"`
	Status    string `json:"status"`
	CreatedAt string `json:"created_at"`
	Failure   *struct {
		Code string `json:"code"`
	} `json:"failure"`
	Transaction *struct {
		Seq          int64 `json:"seq"`
		BalanceAfter int64 `json:"balance_after"`
	} `json:"transaction"`
}

// outcome is a finished job in one line, as the model writes it.
func (j jobAnswer) outcome() string {
	switch {
	case j.Transaction != nil:
		return fmt.Sprintf("%s seq %d balance %d", j.Status, j.Transaction.Seq, j.Transaction.BalanceAfter)
	case j.Failure != nil:
		return j.Status + " " + j.Failure.Code
	}
	return j.Status
}

type transaction struct {
	Seq          int64   `json:"seq"`
	Type         string  `json:"type"`
	Amount       int64   `json:"amount"`
	BalanceAfter int64   `json:"balance_after"`
	JobID        *string `json:"job_id"`
}

type page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor"`
}

// password is every client's.
const password = "a long enough password"

// cheapHash is the password's, with the least work that Argon2id knows: hashes with Passbook's own
// parameters would take a third of the CPU time of all APIs in these tests.
var cheapHash = sync.OnceValues(func() (string, error) {
	return argon2id.CreateHash(password, &argon2id.Params{Memory: 8, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32})
})

// addUser adds a user past the API, with the password and its cheap hash.
func addUser(ctx context.Context, pool *pgxpool.Pool, email string) error {
	hash, err := cheapHash()
	if err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `INSERT INTO users (id, email, email_key, password_hash) VALUES ($1, $2, $2, $3)`, uuid.Must(uuid.NewV7()), email, hash)
	return err
}

// newClient returns a client that has logged in as a user whom addUser added.
func newClient(t testing.TB, s *system) *client {
	t.Helper()
	if s.pool == nil {
		s.pool = s.connect()
	}
	c := newAnonymousClient(t, s)
	c.user = map[string]string{"email": uuid.NewString() + "@example.com", "password": password}
	if err := addUser(t.Context(), s.pool, c.user["email"]); err != nil {
		t.Fatal(err)
	}
	c.logIn()
	return c
}

// newSignedUpClient returns a client that has signed up and logged in through the API, with Passbook's own
// hash of the password.
func newSignedUpClient(t testing.TB, s *system) *client {
	t.Helper()
	c := newAnonymousClient(t, s)
	c.signUp()
	c.logIn()
	return c
}

// newAnonymousClient returns a client without a user.
func newAnonymousClient(t testing.TB, s *system) *client {
	t.Helper()
	const connections = 256
	transport := &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{t: t, system: s, http: &http.Client{Transport: transport, Timeout: patience}}
}

func (c *client) logIn() {
	c.t.Helper()
	var made tokens
	c.must(http.StatusCreated, http.MethodPost, "/v1/sessions", c.user, &made)
	c.token = made.AccessToken
}

// signUp creates the client's user. A try that got a 503 may have created one, so the next try
// has another address.
func (c *client) signUp() {
	c.t.Helper()
	deadline, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		c.user = map[string]string{"email": uuid.NewString() + "@example.com", "password": password}
		status, text, err := c.request(deadline, c.system.api(0), http.MethodPost, "/v1/users", "", c.user)
		switch {
		case err == nil && status == http.StatusCreated:
			return
		case err != nil || status != http.StatusServiceUnavailable || !c.pause(deadline):
			c.t.Fatalf("sign up: %d %s %v", status, text, err)
		}
	}
}

// thatPrefers is the client with a Prefer header.
func (c client) thatPrefers(what string) *client {
	c.prefer = what
	return &c
}

type tokens struct {
	AccessToken string `json:"access_token"`
}

// must sends a request to the first API, again while the API says so, and fails the test unless
// the response has the status.
func (c *client) must(status int, method, path string, body, answer any) {
	c.t.Helper()
	deadline, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	got, text, err := c.request(deadline, c.system.api(0), method, path, "", body)
	for err == nil && got == http.StatusServiceUnavailable && status != got && c.pause(deadline) {
		got, text, err = c.request(deadline, c.system.api(0), method, path, "", body)
	}
	if err != nil || got != status {
		c.t.Fatalf("%s %s: %d %s %v; want %d", method, path, got, text, err, status)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			c.t.Fatalf("%s %s: %s: %v", method, path, text, err)
		}
	}
}

func (c *client) request(ctx context.Context, api, method, path, key string, body any) (status int, answer []byte, err error) {
	status, _, answer, err = c.call(ctx, api, method, path, key, body)
	return status, answer, err
}

// call is request, with the response's header.
func (c *client) call(ctx context.Context, api, method, path, key string, body any) (status int, header http.Header, answer []byte, err error) {
	var encoded []byte
	if body != nil {
		if encoded, err = json.Marshal(body); err != nil {
			return 0, nil, nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, api+path, bytes.NewReader(encoded))
	if err != nil {
		return 0, nil, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.prefer != "" {
		req.Header.Set("Prefer", c.prefer)
	}
	saw := c.do(req)
	if c.watch != nil {
		c.watch(saw)
	}
	return saw.status, saw.header, saw.body, saw.err
}

func (c *client) do(req *http.Request) seen {
	saw := seen{method: req.Method}
	started := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		saw.err = err
		return saw
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	saw.body, saw.err = io.ReadAll(resp.Body)
	saw.status, saw.header, saw.took = resp.StatusCode, resp.Header, time.Since(started)
	return saw
}

func (c *client) open(initialDeposit int64) account {
	c.t.Helper()
	request := map[string]any{}
	if initialDeposit > 0 {
		request["initial_deposit"] = initialDeposit
	}
	var opened account
	c.must(http.StatusCreated, http.MethodPost, "/v1/accounts", request, &opened)
	return opened
}

// jobRequest is a client's request for a deposit or a withdrawal.
type jobRequest struct {
	account string
	entry   string // "deposits" or "withdrawals"
	amount  int64
	key     string
}

// settle sends a request to one API after the other until one of them responds and does not say
// to try again. It returns the job that the request made.
func (c *client) settle(firstAPI int, req jobRequest) (job jobAnswer, err error) {
	answer, err := c.settled(firstAPI, req)
	if err == nil {
		err = json.Unmarshal(answer, &job)
	}
	return job, err
}

// settled is settle, and returns the job as the response shows it.
func (c *client) settled(firstAPI int, req jobRequest) ([]byte, error) {
	return c.settledBy(firstAPI, req, c.send)
}

// settleBatch is settle for a batch of requests of one account.
func (c *client) settleBatch(firstAPI int, requests []jobRequest) (jobs []jobAnswer, err error) {
	answer, err := c.settledBy(firstAPI, requests[0], func(ctx context.Context, api int, _ jobRequest) (int, []byte, error) {
		return c.sendBatch(ctx, c.system.api(api), requests)
	})
	var made page[jobAnswer]
	if err == nil {
		err = json.Unmarshal(answer, &made)
	}
	return made.Data, err
}

func (c *client) settledBy(firstAPI int, req jobRequest, send func(context.Context, int, jobRequest) (int, []byte, error)) ([]byte, error) {
	deadline, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for try := firstAPI; ; try++ {
		status, answer, err := send(deadline, try, req)
		switch {
		case err == nil && (status == http.StatusAccepted || status == http.StatusOK):
			return answer, nil
		case err == nil && status < http.StatusInternalServerError:
			return nil, fmt.Errorf("%s: %d %s", req.key, status, answer)
		}
		if !c.pause(deadline) {
			return nil, fmt.Errorf("%s: never settled: %d %s %w", req.key, status, answer, err)
		}
	}
}

// pause waits between two tries. It returns false when the time for tries is over.
func (c *client) pause(deadline context.Context) bool {
	const pause = 20 * time.Millisecond
	select {
	case <-time.After(pause):
		return true
	case <-deadline.Done():
		return false
	}
}

func (c *client) send(ctx context.Context, api int, req jobRequest) (status int, answer []byte, err error) {
	return c.request(ctx, c.system.api(api), http.MethodPost, "/v1/accounts/"+req.account+"/"+req.entry, req.key, map[string]any{"amount": req.amount})
}

// sendBatch sends requests of one account as a batch.
func (c *client) sendBatch(ctx context.Context, api string, requests []jobRequest) (status int, answer []byte, err error) {
	return c.request(ctx, api, http.MethodPost, "/v1/accounts/"+requests[0].account+"/jobs", "", batchBody(requests))
}

func batchBody(requests []jobRequest) map[string]any {
	jobs := make([]map[string]any, len(requests))
	for i, req := range requests {
		jobs[i] = map[string]any{"type": strings.TrimSuffix(req.entry, "s"), "amount": req.amount, "idempotency_key": req.key}
	}
	return map[string]any{"jobs": jobs}
}

func (c *client) account(number string) (a account) {
	c.t.Helper()
	c.must(http.StatusOK, http.MethodGet, "/v1/accounts/"+number, nil, &a)
	return a
}

func (c *client) jobs(number string) []jobAnswer {
	c.t.Helper()
	return all[jobAnswer](c, "/v1/accounts/"+number+"/jobs")
}

func (c *client) history(number string) []transaction {
	c.t.Helper()
	return all[transaction](c, "/v1/accounts/"+number+"/transactions")
}

// all reads a whole list, oldest first.
func all[T any](c *client, path string) (items []T) {
	c.t.Helper()
	query := url.Values{"order": {"asc"}, "limit": {"100"}}
	for {
		var p page[T]
		c.must(http.StatusOK, http.MethodGet, path+"?"+query.Encode(), nil, &p)
		items = append(items, p.Data...)
		if p.NextCursor == nil {
			return items
		}
		query.Set("cursor", *p.NextCursor)
	}
}

// checkHistory checks that a history has no gap, that every balance follows from
// the one before, and that the account agrees with the last one. It returns the seq
// of each job.
func (c *client) checkHistory(number string) map[string]transaction {
	c.t.Helper()
	byJob := map[string]transaction{}
	var balance int64
	history := c.history(number)
	for i, entry := range history {
		if entry.Type == "deposit" {
			balance += entry.Amount
		} else {
			balance -= entry.Amount
		}
		if entry.Seq != int64(i+1) || entry.BalanceAfter != balance || balance < 0 {
			c.t.Fatalf("account %s: entry %d is %+v, its history makes %d", number, i+1, entry, balance)
		}
		if entry.JobID != nil {
			if _, twice := byJob[*entry.JobID]; twice {
				c.t.Errorf("account %s: job %s was posted twice", number, *entry.JobID)
			}
			byJob[*entry.JobID] = entry
		}
	}
	if a := c.account(number); a.Balance != balance || a.LastSeq != int64(len(history)) {
		c.t.Errorf("account %s says %+v, its history makes %d at %d", number, a, balance, len(history))
	}
	return byJob
}
