//go:build clocks

package e2e_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// An api an hour ahead beside one that is right; a worker ahead, one behind, one
// that is right. Clients use both apis with one token, tasks are lost and a worker dies
// in the middle: every outcome is that of a single thread, in the usual time, and every
// time in an answer is Postgres's.
//
// It is not part of `make test`: programs with another clock are compiled from
// the standard library up, which takes minutes.
func TestClocksApart(t *testing.T) {
	tests := []struct {
		name    string
		apis    []time.Duration
		workers []time.Duration
		killed  int // a worker, and not brought back
	}{
		{"AheadWorkerKilled", []time.Duration{0, time.Hour}, []time.Duration{time.Hour, 0, -time.Hour}, 0},
		{"RightWorkerKilled", []time.Duration{0, -time.Hour}, []time.Duration{time.Hour, 0, -time.Hour}, 1},
		{"BehindWorkerKilled", []time.Duration{-time.Hour, time.Hour}, []time.Duration{time.Hour, 0, -time.Hour}, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSystem(t, plain, 0, 0)
			for _, skew := range test.apis {
				s.apis = append(s.apis, startSkewed(t, s, "api", skew))
			}
			for _, skew := range test.workers {
				s.workers = append(s.workers, startSkewed(t, s, "worker", skew))
			}
			c := newSignedUpClient(t, s)
			const accounts, requests, initial = 8, 150, 500
			var (
				sent    atomic.Int64
				midway  = make(chan struct{})
				reached = sync.OnceFunc(func() { close(midway) })
				clients errgroup.Group
				results [accounts][]*sentRequest
			)
			for i := range accounts {
				number := c.open(initial).Number
				clients.Go(func() (err error) {
					results[i], err = sendSequentially(c, i, number, initial, requests, func() {
						if sent.Add(1) == accounts*requests/3 {
							reached()
						}
					})
					if err != nil {
						reached() // or the test would wait for it
					}
					return err
				})
			}
			<-midway
			flushAll(t, s)
			s.workers[test.killed].kill()
			if err := clients.Wait(); err != nil {
				t.Fatal(err)
			}
			over := time.Now()
			s.drained()
			if took := time.Since(over); took > afterWorker {
				t.Errorf("drained %v after the last accept, want at most %v", took, afterWorker)
			}
			for _, requests := range results {
				compare(c, requests)
				checkTimes(c, requests[0].account)
			}
			checkAllTimes(t, s)
			s.verify()
		})
	}
}

// Jobs whose account is locked are applied in time once it is not, although the
// worker that delayed their tasks was an hour ahead and is dead.
func TestClocksApart_PutOffByTheDead(t *testing.T) {
	s := newSystem(t, plain, 0, 0)
	s.apis = append(s.apis, startSkewed(t, s, "api", 0))
	s.workers = append(s.workers, startSkewed(t, s, "worker", time.Hour))
	c := newSignedUpClient(t, s)
	_, release := queueBehindLock(t, s, c, 1)
	testenv.Eventually(t, "tasks that are delayed when the worker dies", func() bool {
		thaw := testenv.Freeze(t, s.workers[0].cmd.Process.Pid)
		if putOff(t, s) > 0 {
			return true
		}
		thaw()
		return false
	})
	s.workers[0].kill()
	s.workers[0] = startSkewed(t, s, "worker", 0)
	release()
	over := time.Now()
	s.drained()
	if took := time.Since(over); took > afterWorker {
		t.Errorf("took %v, want at most %v", took, afterWorker)
	}
	s.verify()
}

// putOff counts the tasks that wait for another attempt.
func putOff(t *testing.T, s *system) (n int64) {
	t.Helper()
	r := s.redisClient()
	defer r.Close() //nolint:errcheck // nothing is pending on it; it is called often
	lines, err := r.Keys(t.Context(), "asynq:{"+queues.Prefix+":tx:*}:retry").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		n += r.ZCard(t.Context(), line).Val()
	}
	return n
}

// checkTimes checks what the API says of an account's times: they are near to
// ours, which is Postgres's, and don't go back.
func checkTimes(c *client, number string) {
	c.t.Helper()
	type times struct {
		CreatedAt  time.Time  `json:"created_at"`
		FinishedAt *time.Time `json:"finished_at"`
	}
	var last time.Time
	for _, entry := range all[times](c, "/v1/accounts/"+number+"/transactions") {
		if !entry.CreatedAt.After(last) || time.Since(entry.CreatedAt).Abs() > testTime {
			c.t.Errorf("account %s: a transaction of %v after one of %v", number, entry.CreatedAt, last)
		}
		last = entry.CreatedAt
	}
	for _, job := range all[times](c, "/v1/accounts/"+number+"/jobs") {
		if time.Since(job.CreatedAt).Abs() > testTime || job.FinishedAt == nil ||
			job.FinishedAt.Before(job.CreatedAt) || time.Since(*job.FinishedAt).Abs() > testTime {
			c.t.Errorf("account %s: a job of %v finished at %v", number, job.CreatedAt, job.FinishedAt)
		}
	}
}

// testTime is longer than a test takes, and shorter than a clock is wrong by.
const testTime = 20 * time.Minute

// checkAllTimes checks every time that any process wrote to Postgres.
func checkAllTimes(t *testing.T, s *system) {
	t.Helper()
	const sql = `
		SELECT what, max(abs(extract(epoch FROM clock_timestamp() - at)))::float8 FROM (
			SELECT 'user', created_at FROM users
			UNION ALL SELECT 'session', created_at FROM sessions
			UNION ALL SELECT 'refresh token', created_at FROM refresh_tokens
			UNION ALL SELECT 'expiry', expires_at - interval '30 days' FROM refresh_tokens
			UNION ALL SELECT 'account', created_at FROM accounts
			UNION ALL SELECT 'last change', last_at FROM accounts
			UNION ALL SELECT 'job', created_at FROM jobs
			UNION ALL SELECT 'end', finished_at FROM job_states
			UNION ALL SELECT 'transaction', created_at FROM transactions
		) AS times (what, at) GROUP BY what`
	rows, _ := s.pool.Query(t.Context(), sql) // ForEachRow returns its error
	var what string
	var wrong float64
	_, err := pgx.ForEachRow(rows, []any{&what, &wrong}, func() error {
		if wrong > testTime.Seconds() {
			t.Errorf("the time of a %s is wrong by %.0f s", what, wrong)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
