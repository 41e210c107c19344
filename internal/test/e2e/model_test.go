package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// Each account has one client, which sends one order at a time to the APIs in turn,
// without waiting for outcomes. Every outcome must be what a single thread makes of the
// orders in their order, whichever process dies. A client without an answer sends the
// order again with the same key.
func TestSequentialClients(t *testing.T) {
	tests := []struct {
		name             string
		accounts, orders int
		inject           func(*testing.T, *system)
	}{
		{"Undisturbed", 12, 100, func(*testing.T, *system) {}},
		{"EverythingKilled", 8, 100, func(t *testing.T, s *system) {
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
			s := newSystem(t, variant{}, 2, 2)
			c := newClient(t, s)
			var (
				sent    atomic.Int64
				midway  = make(chan struct{})
				clients errgroup.Group
				results = make([][]*sentOrder, test.accounts)
			)
			for i := range test.accounts {
				const initial = 500
				a := c.open(initial)
				clients.Go(func() (err error) {
					results[i], err = sendSequentially(c, i, a.Number, initial, test.orders, func() {
						if sent.Add(1) == int64(test.accounts*test.orders/3) {
							close(midway)
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
			for _, orders := range results {
				compare(c, orders)
			}
			s.verify()
		})
	}
}

// sentOrder is an accepted order and what a single thread makes of it.
type sentOrder struct {
	order
	job  jobAnswer
	want string
}

// sendSequentially sends n random orders on one account, one after the other.
func sendSequentially(c *client, client int, number string, balance int64, n int, sent func()) ([]*sentOrder, error) {
	t := newSequentialClient(c, client, number, balance)
	for range n {
		if err := t.next(); err != nil {
			return nil, err
		}
		sent()
	}
	return t.orders, nil
}

// sequentialClient sends orders on one account, one at a time, and knows what a single
// thread makes of them.
type sequentialClient struct {
	c            *client
	client       int // a number of its own: it seeds the orders and chooses the first API
	number       string
	balance, seq int64
	random       *rand.Rand
	orders       []*sentOrder
}

func newSequentialClient(c *client, client int, number string, balance int64) *sequentialClient {
	return &sequentialClient{
		c: c, client: client, number: number, balance: balance,
		seq:    1, // the initial deposit
		random: rand.New(rand.NewPCG(uint64(client), 42)),
	}
}

// next sends a random order until it is accepted.
func (t *sequentialClient) next() (err error) {
	i := len(t.orders)
	o := &sentOrder{order: order{
		account: t.number, entry: "deposits", amount: 1 + t.random.Int64N(400), key: fmt.Sprintf("order-%s-%d", t.number, i),
	}}
	if t.random.IntN(2) == 0 {
		o.entry = "withdrawals"
	}
	o.want = t.predict(o.order)
	if o.job, err = t.c.settle(t.client+i, o.order); err != nil {
		return err
	}
	t.orders = append(t.orders, o)
	return nil
}

func (t *sequentialClient) predict(o order) string {
	switch {
	case o.entry == "withdrawals" && t.balance < o.amount:
		return "rejected insufficient_funds"
	case o.entry == "withdrawals":
		t.balance -= o.amount
	default:
		t.balance += o.amount
	}
	t.seq++
	return fmt.Sprintf("succeeded seq %d balance %d", t.seq, t.balance)
}

// compare compares every outcome with the model's, and the account with its history. A
// key that is sent once more must answer with its job.
func compare(c *client, orders []*sentOrder) {
	c.t.Helper()
	number := orders[0].account
	finished := map[string]jobAnswer{}
	jobs := c.jobs(number)
	for _, job := range jobs {
		finished[job.ID] = job
	}
	if len(jobs) != len(orders) || len(finished) != len(orders) {
		c.t.Errorf("account %s has %d jobs of %d orders", number, len(jobs), len(orders))
	}
	for i, o := range orders {
		if got := finished[o.job.ID].outcome(); got != o.want {
			c.t.Fatalf("account %s, order %d (%s of %d): %s, a single thread makes it %s", number, i, o.entry, o.amount, got, o.want)
		}
		if jobs[i].ID != o.job.ID {
			c.t.Errorf("account %s: job %d is listed out of order", number, i)
		}
	}
	last := orders[len(orders)-1]
	if again, err := c.settle(0, last.order); err != nil || again.ID != last.job.ID || again.outcome() != last.want {
		c.t.Errorf("key %s answers with %s %s, %v; want %s", last.key, again.ID, again.outcome(), err, last.job.ID)
	}
	c.checkHistory(number)
}

func flushAll(t *testing.T, s *system) {
	t.Helper()
	opt, err := redis.ParseURL(s.redis.URL())
	if err != nil {
		t.Fatal(err)
	}
	r := redis.NewClient(opt)
	defer r.Close() //nolint:errcheck // nothing is pending on it
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
	s := newSystem(t, variant{}, 2, 1)
	c := newClient(t, s)
	a := c.open(0)
	const rounds = 100
	for round := range rounds {
		o := order{account: a.Number, entry: "deposits", amount: 1, key: fmt.Sprint("same-", round)}
		var (
			group errgroup.Group
			jobs  [2]jobAnswer
			ready = make(chan struct{})
		)
		for api := range 2 {
			group.Go(func() (err error) {
				<-ready
				jobs[api], err = c.settle(api, o)
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
	s := newSystem(t, variant{}, 2, 2)
	c := newClient(t, s)
	a := c.open(0)
	const connections = 32
	var (
		accepted atomic.Int64
		group    errgroup.Group
		halfway  = make(chan struct{})
	)
	for connection := range connections {
		group.Go(func() error {
			for i := 0; ; i++ {
				status, _, err := c.send(context.Background(), 0, order{
					account: a.Number, entry: "deposits", amount: 1, key: fmt.Sprintf("stop-%d-%d", connection, i),
				})
				switch {
				case err != nil: // the API takes no more connections
					return nil //nolint:nilerr // that is how the loop ends
				case status != http.StatusAccepted:
					return fmt.Errorf("status %d, want 202 or no connection", status)
				}
				if accepted.Add(1) == 500 {
					close(halfway)
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
