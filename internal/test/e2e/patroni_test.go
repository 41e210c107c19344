//go:build deploy

package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The primary dies, and Patroni promotes its standby, while clients send requests and read
// everything. No accepted job is lost, nothing that a client read changes, no caller sees what is
// another's, and the old primary becomes the standby of the new one: it is the next to be promoted.
func TestPatroni(t *testing.T) {
	const some = 100
	postgres := testenv.PostgresPatroni(t, filepath.Join(repository, "deploy", "postgres", "patroni.yml"))
	s := &system{t: t, databaseURL: postgres.URL(), redis: testenv.RedisServer(t), reach: promisesEnv}
	s.start(2, 2)
	r := newRound(t, s)
	extra := r.c.open(0)
	stranger := startStranger(r)
	faults := []struct {
		name string
		kill func(n int) (back func())
	}{
		{"PostgresKilled", postgres.KillPostgres},
		{"HostDead", postgres.KillHost},
	}
	for _, fault := range faults {
		r.awaitNews(some)
		stranger.awaitRefused(some)
		primary := postgres.Primary()
		killed := time.Now()
		back := fault.kill(primary)
		postgres.AwaitPrimary(1 - primary)
		promoted := time.Since(killed)
		s.pool.Reset()
		s.finish(r.c, jobRequest{extra.Number, "deposits", 1, fault.name})
		took := time.Since(killed)
		t.Logf("%s: promoted %v and a job accepted and done %v after the kill", fault.name, promoted, took)
		if took > failoverBound {
			t.Errorf("%s: the service took %v to go on, want %v at most", fault.name, took, failoverBound)
		}
		r.awaitNews(some)
		stranger.awaitRefused(some)
		back()
		postgres.AwaitStandby(primary)
		t.Logf("%s: the old primary is the standby %v after the kill", fault.name, time.Since(killed))
		r.awaitNews(some)
	}
	stranger.stop()
	r.end()
	s.verify()
}

// openEvery is how often a stranger asks before it opens another account: a user may have 1000.
const openEvery = 4

// stranger is a user who opens accounts and asks for what is another's, again and again.
type stranger struct {
	c       *client
	r       *round // of the other user
	own     []string
	refused atomic.Int64 // answers that showed nothing
	stopped atomic.Bool
	ended   chan struct{}
	err     error // to be read after ended
}

func startStranger(r *round) *stranger {
	r.t.Helper()
	s := &stranger{c: newSignedUpClient(r.t, r.s), r: r, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for n := 0; s.err == nil && !s.stopped.Load(); n++ {
			if s.err = s.ask(n); s.err == nil && n%openEvery == 0 {
				s.err = s.open(n)
			}
		}
	}()
	r.t.Cleanup(func() { s.stopped.Store(true); <-s.ended })
	return s
}

// open opens an account while the last one may have been lost with the primary: then its id is used
// again.
func (s *stranger) open(n int) error {
	status, answer, err := s.c.request(s.r.t.Context(), s.r.s.api(n), http.MethodPost, "/v1/accounts", "", map[string]any{})
	var opened account
	switch {
	case err != nil:
		return err
	case status == http.StatusServiceUnavailable:
		return nil
	case status != http.StatusCreated:
		return fmt.Errorf("open an account: %d %s", status, answer)
	}
	err = json.Unmarshal(answer, &opened)
	s.own = append(s.own, opened.Number)
	return err
}

// ask asks for an account and a job of the other user, by each route.
func (s *stranger) ask(n int) error {
	account := "/v1/accounts/" + s.r.accounts[n%len(s.r.accounts)].number
	paths := []string{account, account + "/balance", account + "/transactions", account + "/transactions/1", account + "/jobs"}
	if id := s.r.record.anyJob(); id != "" {
		paths = append(paths, "/v1/jobs/"+id)
	}
	for _, path := range paths {
		status, answer, err := s.c.request(s.r.t.Context(), s.r.s.api(n), http.MethodGet, path, "", nil)
		if err != nil {
			return fmt.Errorf("a stranger asks for %s: %w", path, err)
		}
		if status != http.StatusNotFound && status != http.StatusServiceUnavailable {
			return fmt.Errorf("a stranger asks for %s: %d %s", path, status, answer)
		}
		s.refused.Add(1)
	}
	return nil
}

// anyJob is the id of a job that was read finished, or nothing.
func (d *record) anyJob() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.jobs {
		return id
	}
	return ""
}

func (s *stranger) awaitRefused(n int64) {
	s.r.t.Helper()
	from := s.refused.Load()
	testenv.Eventually(s.r.t, fmt.Sprintf("%d more refusals of a stranger", n), func() bool {
		select {
		case <-s.ended:
			return true
		default:
			return s.refused.Load() >= from+n
		}
	})
}

// stop ends the stranger's requests. Each account is its owner's, and no other's.
func (s *stranger) stop() {
	s.r.t.Helper()
	s.stopped.Store(true)
	if <-s.ended; s.err != nil {
		s.r.t.Error(s.err)
	}
	others := numbers(s.r.c)
	for _, a := range s.r.accounts {
		if !slices.Contains(others, a.number) {
			s.r.t.Errorf("account %s is not in its owner's list", a.number)
		}
	}
	mine := numbers(s.c)
	for _, number := range s.own {
		if !slices.Contains(mine, number) {
			s.r.t.Errorf("account %s, whose opening was answered, is not in its owner's list", number)
		}
	}
	for _, number := range mine {
		if slices.Contains(others, number) {
			s.r.t.Errorf("account %s is in the lists of two users", number)
		}
	}
	s.r.t.Logf("a stranger was refused %d times and opened %d accounts", s.refused.Load(), len(s.own))
}

// numbers are all accounts of a user.
func numbers(c *client) (numbers []string) {
	c.t.Helper()
	for path := "/v1/accounts?limit=100"; ; {
		var p page[account]
		c.must(http.StatusOK, http.MethodGet, path, nil, &p)
		for _, a := range p.Data {
			numbers = append(numbers, a.Number)
		}
		if p.NextCursor == nil {
			return numbers
		}
		path = "/v1/accounts?limit=100&cursor=" + url.QueryEscape(*p.NextCursor)
	}
}
