package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Each account has one client, which sends one request at a time to the APIs in turn,
// without waiting for outcomes. Every outcome must be what a single thread makes of the
// requests in their order, whichever process dies. A client without an answer sends the
// request again with the same key.
func TestSequentialClients(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name               string
		accounts, requests int
		inject             func(*testing.T, *system)
	}{
		{"Undisturbed", 12, 60, func(*testing.T, *system) {}},
		{"EverythingKilled", 8, 60, func(t *testing.T, s *system) {
			t.Helper()
			crashRedis(t, s)
			s.crashWorker(0)
			s.crashAPI(1)
			flushAll(t, s)
			crashPostgres(t, s)
			s.crashWorker(1)
			s.crashAPI(0)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, plain, 2, 2)
			c := newClient(t, s)
			var (
				sent    atomic.Int64
				midway  = make(chan struct{})
				reached = sync.OnceFunc(func() { close(midway) })
				clients errgroup.Group
				results = make([][]*sentRequest, test.accounts)
			)
			for i := range test.accounts {
				const initial = 500
				a := c.open(initial)
				clients.Go(func() (err error) {
					defer reached() // also where the client fails, or the test would wait for it
					results[i], err = sendSequentially(c, i, a.Number, initial, test.requests, func() {
						if sent.Add(1) == int64(test.accounts*test.requests/3) {
							reached()
						}
					})
					return err
				})
			}
			<-midway
			test.inject(t, s)
			if err := clients.Wait(); err != nil {
				t.Fatal(err)
			}
			s.drained()
			for _, requests := range results {
				compare(c, requests)
			}
			s.verify()
		})
	}
}

// sentRequest is an accepted request and what a single thread makes of it.
type sentRequest struct {
	jobRequest
	job  jobAnswer
	want string
}

// sendSequentially sends n random requests on one account, one after the other.
func sendSequentially(c *client, client int, number string, balance int64, n int, sent func()) ([]*sentRequest, error) {
	t := newSequentialClient(c, client, number, balance)
	for range n {
		if err := t.next(); err != nil {
			return nil, err
		}
		sent()
	}
	return t.requests, nil
}

// sequentialClient sends requests on one account, one at a time, and knows what a single
// thread makes of them.
type sequentialClient struct {
	c            *client
	client       int // a number of its own: it seeds the requests and chooses the first API
	number       string
	balance, seq int64
	random       *rand.Rand
	requests     []*sentRequest
}

func newSequentialClient(c *client, client int, number string, balance int64) *sequentialClient {
	return &sequentialClient{
		c: c, client: client, number: number, balance: balance,
		seq:    1, // the initial deposit
		random: rand.New(rand.NewPCG(uint64(client), 42)),
	}
}

// next sends a random request until it is accepted.
func (t *sequentialClient) next() (err error) {
	i := len(t.requests)
	req := &sentRequest{jobRequest: jobRequest{
		account: t.number, entry: "deposits", amount: 1 + t.random.Int64N(400), key: fmt.Sprintf("request-%s-%d", t.number, i),
	}}
	if t.random.IntN(2) == 0 {
		req.entry = "withdrawals"
	}
	req.want = t.predict(req.jobRequest)
	if req.job, err = t.c.settle(t.client+i, req.jobRequest); err != nil {
		return err
	}
	t.requests = append(t.requests, req)
	return nil
}

func (t *sequentialClient) predict(req jobRequest) string {
	switch {
	case req.entry == "withdrawals" && t.balance < req.amount:
		return "rejected insufficient_funds"
	case req.entry == "withdrawals":
		t.balance -= req.amount
	default:
		t.balance += req.amount
	}
	t.seq++
	return fmt.Sprintf("succeeded seq %d balance %d", t.seq, t.balance)
}

// compare compares every outcome with the model's, and the account with its history. A
// key that is sent once more must answer with its job.
func compare(c *client, requests []*sentRequest) {
	c.t.Helper()
	number := requests[0].account
	finished := map[string]jobAnswer{}
	jobs := c.jobs(number)
	for _, job := range jobs {
		finished[job.ID] = job
	}
	if len(jobs) != len(requests) || len(finished) != len(requests) {
		c.t.Errorf("account %s has %d jobs of %d requests", number, len(jobs), len(requests))
	}
	for i, req := range requests {
		if got := finished[req.job.ID].outcome(); got != req.want {
			c.t.Fatalf("account %s, request %d (%s of %d): %s, a single thread makes it %s", number, i, req.entry, req.amount, got, req.want)
		}
		if jobs[i].ID != req.job.ID {
			c.t.Errorf("account %s: job %d is listed out of order", number, i)
		}
	}
	last := requests[len(requests)-1]
	if again, err := c.settle(0, last.jobRequest); err != nil || again.ID != last.job.ID || again.outcome() != last.want {
		c.t.Errorf("key %s answers with %s %s, %v; want %s", last.key, again.ID, again.outcome(), err, last.job.ID)
	}
	c.checkHistory(number)
}

func flushAll(t *testing.T, s *system) {
	t.Helper()
	r := s.redisClient()
	if err := r.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
}

// crashRedis kills Redis, which comes back empty.
func crashRedis(t *testing.T, s *system) {
	t.Helper()
	if err := s.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func crashPostgres(t *testing.T, s *system) {
	t.Helper()
	if err := s.postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pool.Reset()
}

// Two requests with one key at the same instant, at two APIs, make one job.
func TestOneKeyAtOnce(t *testing.T) {
	t.Parallel()
	s := newSystem(t, plain, 2, 1)
	c := newClient(t, s)
	a := c.open(0)
	const rounds = 50
	for round := range rounds {
		req := jobRequest{account: a.Number, entry: "deposits", amount: 1, key: fmt.Sprint("same-", round)}
		var (
			group errgroup.Group
			jobs  [2]jobAnswer
			ready = make(chan struct{})
		)
		for api := range 2 {
			group.Go(func() (err error) {
				<-ready
				jobs[api], err = c.settle(api, req)
				return err
			})
		}
		close(ready)
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		if jobs[0].ID != jobs[1].ID {
			t.Fatalf("round %d made two jobs, %s and %s", round, jobs[0].ID, jobs[1].ID)
		}
	}
	s.drained()
	if n := len(c.checkHistory(a.Number)); n != rounds {
		t.Errorf("%d transactions, want %d", n, rounds)
	}
	s.verify()
}

// SIGTERM in the middle of the load: every 202 that was given is kept, and every
// program ends well.
func TestStopInOrder(t *testing.T) {
	t.Parallel()
	s := newSystem(t, plain, 2, 2)
	c := newClient(t, s)
	a := c.open(0)
	const connections = 32
	var (
		accepted atomic.Int64
		group    errgroup.Group
		halfway  = make(chan struct{})
		reached  = sync.OnceFunc(func() { close(halfway) })
	)
	for connection := range connections {
		group.Go(func() error {
			defer reached() // also where the client fails, or the test would wait for it
			for i := 0; ; i++ {
				status, _, err := c.send(context.Background(), 0, jobRequest{
					account: a.Number, entry: "deposits", amount: 1, key: fmt.Sprintf("stop-%d-%d", connection, i),
				})
				switch {
				case err != nil: // the API takes no more connections
					return nil // that is how the loop ends
				case status != http.StatusAccepted:
					return fmt.Errorf("status %d, want 202 or no connection", status)
				}
				if accepted.Add(1) == 500 {
					reached()
				}
			}
		})
	}
	<-halfway
	s.apis[0].stop()
	s.workers[0].stop()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	s.workers[1].stop()
	s.workers[1] = start(t, "worker", s.env())
	s.drained()
	var jobs int64
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM jobs`).Scan(&jobs); err != nil {
		t.Fatal(err)
	}
	// A request that was cut off before its answer may have made a job too.
	if got := accepted.Load(); jobs < got || jobs > got+connections {
		t.Errorf("%d accepted, %d jobs", got, jobs)
	}
	s.verify()
}
