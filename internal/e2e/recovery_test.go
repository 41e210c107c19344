package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// recoveryBound is how soon after a fault every queued job is applied again,
// where there are few of them.
const recoveryBound = 10 * time.Second

// Faults that take tickets with them: jobs are queued, tickets in workers' hands
// and in line, all held up by a lock on their accounts, when the fault strikes.
func TestRecovery(t *testing.T) {
	tests := []struct {
		name    string
		workers int
		strike  func(*testing.T, *system)
	}{
		{"FlushAll", 2, flushAll},
		{"RedisBackEmpty", 2, crashRedis},
		{"WorkerKilledWhileOthersLive", 2, func(_ *testing.T, s *system) { s.workers[0].kill() }},
		{"OnlyWorkerRestarted", 1, func(_ *testing.T, s *system) { s.crashWorker(0) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSystem(t, 1, test.workers)
			c := newClient(t, s)
			var numbers []string
			for range 8 {
				numbers = append(numbers, c.open(0).Number)
			}
			tx, err := s.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it is over by then
			if _, err := tx.Exec(t.Context(), `SELECT FROM accounts FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			const each = 25
			var group errgroup.Group
			for _, number := range numbers {
				group.Go(func() error {
					for i := range each {
						if _, err := c.settle(0, order{number, "deposits", 1, fmt.Sprint(number, "-", i)}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			if n := s.queued(); n != each*len(numbers) {
				t.Fatalf("%d jobs are queued before the fault, want all %d", n, each*len(numbers))
			}
			test.strike(t, s)
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			struck := time.Now()
			s.drained()
			if took := time.Since(struck); took > recoveryBound {
				t.Errorf("took %v, want at most %v", took, recoveryBound)
			}
			for _, number := range numbers {
				if n := len(c.checkHistory(number)); n != each {
					t.Errorf("account %s has %d transactions, want %d", number, n, each)
				}
			}
			s.verify()
		})
	}
}
