package e2e_test

import (
	"flag"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

var seedEach = flag.Int("seed.each", 300, "deposits of TestSeedExperiment, and as many withdrawals")

// The experiment that Passbook began with: on one account with 10,000, at once
// 10,000 deposits and 10,000 withdrawals of 100. `make seed` runs it at that size.
func TestSeedExperiment(t *testing.T) {
	t.Parallel()
	s := newSystem(t, plain, 2, 2)
	c := newClient(t, s)
	const (
		initial, amount = 10_000, 100
		connections     = 128
	)
	each := *seedEach
	a := c.open(initial)
	var (
		mu       sync.Mutex // guards accepted
		accepted = map[string]string{}
		group    errgroup.Group
	)
	group.SetLimit(connections)
	for i := range 2 * each {
		req := jobRequest{account: a.Number, entry: "deposits", amount: amount, key: fmt.Sprint("seed-", i)}
		if i%2 == 1 {
			req.entry = "withdrawals"
		}
		group.Go(func() error {
			// A cold api may be too busy for the first hundred at once, and says so.
			job, err := c.settle(i/2, req)
			if err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			accepted[job.ID] = job.Type
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(accepted) != 2*each {
		t.Fatalf("%d jobs were accepted, want %d", len(accepted), 2*each)
	}
	s.drained()

	balance := int64(initial)
	posted := c.checkHistory(a.Number)
	jobs := c.jobs(a.Number)
	if len(jobs) != 2*each {
		t.Errorf("%d jobs are there, want %d", len(jobs), 2*each)
	}
	for _, job := range jobs {
		_, isPosted := posted[job.ID]
		switch {
		case accepted[job.ID] == "":
			t.Errorf("job %s was never accepted, or is listed twice", job.ID)
		case job.Status == "succeeded" && isPosted && job.Type == "deposit":
			balance += amount
		case job.Status == "succeeded" && isPosted:
			balance -= amount
		case job.Status == "rejected" && !isPosted && job.Type == "withdrawal" && job.Failure.Code == "insufficient_funds":
		default:
			t.Errorf("job %s, a %s, ended %s, posted %t", job.ID, job.Type, job.outcome(), isPosted)
		}
		delete(accepted, job.ID)
	}
	if got := c.account(a.Number); got.Balance != balance {
		t.Errorf("balance %d, the succeeded jobs make %d", got.Balance, balance)
	}
	s.verify()
}
