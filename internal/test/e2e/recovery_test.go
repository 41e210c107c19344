package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// How soon after a fault every queued job is finished, where there are some hundreds.
const (
	afterWorker       = 5 * time.Second
	afterRedis        = 5 * time.Second
	afterPostgres     = 10 * time.Second
	afterWithoutRedis = 10 * time.Second // where a job is accepted as soon as it is back
	whileRedisRefuses = 10 * time.Second // from the last accept, while the trouble lasts
)

// How long an answer takes while a store is down.
const (
	acceptP99    = 250 * time.Millisecond // of a 202, without Redis
	refusalBound = 2 * time.Second        // of a 503, without Postgres
)

// frozenFor is how long a process stays frozen: longer than any caller waits for it.
const frozenFor = 7 * time.Second

var strict = flag.Bool("recovery.strict", false, "hold the recoveries to their exact bounds, on a machine that does nothing else")

// besideOthers lets a test run in parallel, unless it is strict about time.
func besideOthers(t *testing.T) {
	t.Helper()
	if !*strict {
		t.Parallel()
	}
}

// What a machine that runs other tests at the same time may add: a factor, and a pause.
const (
	slack  = 3
	pauses = 2 * time.Second
)

// measured logs a row of the table of `make recovery`, and fails the test where the time exceeds
// the bound.
func measured(t *testing.T, what string, took, bound time.Duration) {
	t.Helper()
	if !*strict {
		bound = bound*slack + pauses
	}
	row := strings.Trim(strings.TrimPrefix(t.Name(), "TestRecovery"), "/")
	t.Logf("measured\t%s %s\t%.3f\t%.3f", row, what, took.Seconds(), bound.Seconds())
	if took > bound {
		t.Errorf("%s took %v, want at most %v", what, took, bound)
	}
}

// Faults that lose tasks: when a fault is injected, jobs are queued and their tasks are
// active or pending, because a lock on their accounts holds them up. The time runs from
// the end of the fault; if other workers take over, from the injection.
func TestRecovery(t *testing.T) {
	besideOthers(t)
	tests := []struct {
		name    string
		workers int
		inject  func(*testing.T, *system)
		bound   time.Duration
	}{
		{"WorkerKilledWhileOthersLive", 3, func(_ *testing.T, s *system) { s.workers[0].kill() }, afterWorker},
		{"WorkerFrozenWhileOthersLive", 3, freezeWorker, afterWorker},
		{"WorkerStoppedWhileOthersLive", 3, func(_ *testing.T, s *system) { s.workers[0].stop() }, afterWorker},
		{"WorkersRolled", 3, rollWorkers, afterWorker},
		{"OnlyWorkerRestarted", 1, func(_ *testing.T, s *system) { s.crashWorker(0) }, afterWorker},
		{"FlushAll", 3, flushAll, afterRedis},
		{"RedisBackEmpty", 3, crashRedis, afterRedis},
		{"RedisBackStale", 3, crashRedisIntoThePast, afterRedis},
		{"RedisThawed", 3, func(t *testing.T, s *system) { t.Helper(); thawLater(t, testenv.Freeze(t, s.redis.PID())) }, afterRedis},
		{"PostgresBack", 3, crashPostgres, afterPostgres},
		{"PostgresThawed", 3, func(t *testing.T, s *system) { t.Helper(); thawLater(t, freezePostgres(t, s)) }, afterPostgres},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			besideOthers(t)
			s := newDurableSystem(t, 1, test.workers)
			c := newClient(t, s)
			numbers, release := queueBehindLock(t, s, c, queuedEach)
			test.inject(t, s)
			release()
			over := time.Now()
			s.drained()
			measured(t, "all finished", time.Since(over), test.bound)
			for _, number := range numbers {
				if n := len(c.checkHistory(number)); n != queuedEach {
					t.Errorf("account %s has %d transactions, want %d", number, n, queuedEach)
				}
			}
			s.verify()
		})
	}
}

const (
	queuedAccounts = 8
	queuedEach     = 25
)

// queueBehindLock has jobs of each account accepted while the accounts are locked, until
// release.
func queueBehindLock(t *testing.T, s *system, c *client, each int) (numbers []string, release func()) {
	t.Helper()
	for range queuedAccounts {
		numbers = append(numbers, c.open(0).Number)
	}
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A crashed Postgres has released the locks itself; then this is an error.
	release = sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), `SELECT FROM accounts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for _, number := range numbers {
		group.Go(func() error {
			for i := range each {
				if _, err := c.settle(0, jobRequest{number, "deposits", 1, fmt.Sprint(number, "-", i)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := s.queued(); n != queuedAccounts*each {
		t.Fatalf("%d jobs are queued before the fault, want all %d", n, queuedAccounts*each)
	}
	return numbers, release
}

// Accepts don't need Redis: while it refuses, the sweep applies what is accepted. When Redis is
// back, tasks name the jobs again, and no job is applied twice.
func TestRecoveryWithoutRedis(t *testing.T) {
	besideOthers(t)
	tests := []struct {
		name string
		fail func(*testing.T, *system) (repair func())
	}{
		{"Refuses", func(t *testing.T, s *system) func() {
			t.Helper()
			if err := s.redis.Kill(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := s.redis.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"Hangs", func(t *testing.T, s *system) func() {
			t.Helper()
			return testenv.Freeze(t, s.redis.PID())
		}},
		{"Full", func(t *testing.T, s *system) func() {
			t.Helper()
			commandRedis(t, s, "CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction")
			return func() { commandRedis(t, s, "CONFIG", "SET", "maxmemory", "0") }
		}},
		{"ReadOnly", func(t *testing.T, s *system) func() {
			t.Helper()
			commandRedis(t, s, "REPLICAOF", "127.0.0.1", "1")
			return func() { commandRedis(t, s, "REPLICAOF", "NO", "ONE") }
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			besideOthers(t)
			s := newSystem(t, plain, 2, 3)
			c := newClient(t, s)
			var numbers []string
			for range queuedAccounts {
				numbers = append(numbers, c.open(0).Number)
			}
			warm(t, c, numbers)
			s.drained()
			repair := test.fail(t, s)
			took := acceptAll(t, c, numbers)
			accepted := time.Now()
			measured(t, "202 p99", took[len(took)*99/100], acceptP99)
			s.drained()
			measured(t, "all finished while it lasts", time.Since(accepted), whileRedisRefuses)
			repair()
			over := time.Now()
			if _, err := c.settle(0, jobRequest{numbers[0], "deposits", 1, "after"}); err != nil {
				t.Error(err)
			}
			s.drained()
			measured(t, "all finished", time.Since(over), afterWithoutRedis)
			transactions := 0
			for _, number := range numbers {
				transactions += len(c.checkHistory(number))
			}
			if want := warmed + len(took) + 1; transactions != want {
				t.Errorf("%d transactions, want %d", transactions, want)
			}
			s.verify()
		})
	}
}

// commandRedis gives Redis a command.
func commandRedis(t *testing.T, s *system, command ...any) {
	t.Helper()
	if err := s.redisClient().Do(t.Context(), command...).Err(); err != nil {
		t.Fatal(err)
	}
}

const warmed = 100 // deposits

// warm has both apis make the connections that they need.
func warm(t *testing.T, c *client, numbers []string) {
	t.Helper()
	const connections = 16
	var group errgroup.Group
	group.SetLimit(connections)
	for i := range warmed {
		group.Go(func() error {
			_, err := c.settle(i, jobRequest{numbers[i%len(numbers)], "deposits", 1, fmt.Sprint("warm-", i)})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// acceptAll sends some hundreds of deposits, each of which must be accepted at the first try. It
// returns how long each took, the quickest first.
func acceptAll(t *testing.T, c *client, numbers []string) (took []time.Duration) {
	t.Helper()
	const accepts, connections = 300, 16
	took = make([]time.Duration, accepts)
	var group errgroup.Group
	group.SetLimit(connections)
	for i := range accepts {
		req := jobRequest{numbers[i%len(numbers)], "deposits", 1, fmt.Sprint("load-", i)}
		group.Go(func() error {
			started := time.Now()
			status, answer, err := c.send(t.Context(), i, req)
			took[i] = time.Since(started)
			if err != nil || status != http.StatusAccepted {
				return fmt.Errorf("accept %d: %d %s %w", i, status, answer, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(took)
	return took
}

// Without Postgres every answer is a 503 that says when to try again, and it comes soon.
// If only the open connections hang, new connections may serve; the answers still come
// soon.
func TestRecoveryWithoutPostgres(t *testing.T) {
	besideOthers(t)
	tests := []struct {
		name   string
		fail   func(*testing.T, *system) (repair func())
		serves bool // to new connections
	}{
		{"Refuses", func(t *testing.T, s *system) func() {
			t.Helper()
			if err := s.postgres.Kill(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := s.postgres.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.pool.Reset()
			}
		}, false},
		{"Hangs", func(t *testing.T, s *system) func() { t.Helper(); return freezePostgres(t, s) }, false},
		{"ConnectionsHang", func(t *testing.T, s *system) func() {
			t.Helper()
			return testenv.Freeze(t, childrenOf(t, s.postgres.PID())...)
		}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			besideOthers(t)
			s := newSystem(t, plain, 2, 3)
			c := newClient(t, s)
			a := c.open(0)
			warm(t, c, []string{a.Number})
			unseen := newClient(t, s) // only the first api has met its session
			theirs := unseen.open(0)
			repair := test.fail(t, s)
			var worst time.Duration
			for round := range 3 {
				worst = max(worst, refusals(t, c, unseen, a.Number, theirs.Number, round, test.serves))
			}
			measured(t, "slowest answer", worst, refusalBound)
			repair()
			over := time.Now()
			if _, err := c.settle(0, jobRequest{a.Number, "deposits", 1, "after"}); err != nil {
				t.Error(err)
			}
			s.drained()
			measured(t, "all finished", time.Since(over), afterPostgres)
			c.checkHistory(a.Number)
			s.verify()
		})
	}
}

// refusals sends at once every kind of request that needs Postgres, and returns how long the
// slowest response took.
func refusals(t *testing.T, c, unseen *client, number, theirs string, round int, serves bool) (worst time.Duration) {
	t.Helper()
	const seenBy, unseenBy = 0, 1
	deposit := map[string]any{"amount": 1}
	credentials := map[string]any{"email": fmt.Sprintf("unknown-%d@example.com", round), "password": "a long enough password"} // ten for each
	requests := []struct {
		by           *client
		api          int
		method, path string
		body         any
	}{
		{c, seenBy, http.MethodPost, "/v1/accounts/" + number + "/deposits", deposit},
		{c, seenBy, http.MethodPost, "/v1/accounts/" + number + "/withdrawals", deposit},
		{c, seenBy, http.MethodGet, "/v1/jobs/01900000-0000-7000-8000-000000000001", nil},
		{c, seenBy, http.MethodGet, "/v1/accounts/" + number + "/transactions", nil},
		{c, seenBy, http.MethodGet, "/v1/accounts/" + number, nil},
		{c, seenBy, http.MethodPost, "/v1/accounts", map[string]any{"initial_deposit": 1}},
		{unseen, unseenBy, http.MethodPost, "/v1/accounts/" + theirs + "/deposits", deposit},
		{unseen, unseenBy, http.MethodGet, "/v1/accounts/" + theirs + "/jobs", nil},
		{c, seenBy, http.MethodPost, "/v1/sessions", credentials},
		{c, seenBy, http.MethodPost, "/v1/users", map[string]any{
			"email": fmt.Sprintf("%d@example.com", round), "password": "a long enough password",
		}},
		{c, seenBy, http.MethodPost, "/v1/sessions/refresh", map[string]any{"refresh_token": "pbr_x"}},
	}
	var mu sync.Mutex // guards worst
	var group sync.WaitGroup
	for i, request := range requests {
		group.Go(func() {
			started := time.Now()
			answer, err := request.by.requestWhole(request.api, request.method, request.path, fmt.Sprint("refused-", round, "-", i), request.body)
			took := time.Since(started)
			mu.Lock()
			defer mu.Unlock()
			worst = max(worst, took)
			switch {
			case err != nil:
				t.Errorf("%s %s: %v after %v", request.method, request.path, err, took)
			case serves && answer.status < http.StatusInternalServerError:
			case answer.status != http.StatusServiceUnavailable || answer.code != "unavailable" || answer.retryAfter < 1:
				t.Errorf("%s %s: %+v after %v, want 503 unavailable with Retry-After", request.method, request.path, answer, took)
			}
		})
	}
	group.Wait()
	return worst
}

// wholeAnswer is the part of a response that a refusal is checked for.
type wholeAnswer struct {
	status     int
	code       string
	retryAfter int
}

func (c *client) requestWhole(api int, method, path, key string, body any) (answer wholeAnswer, err error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return answer, err
	}
	if body == nil {
		encoded = nil
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.system.api(api)+path, bytes.NewReader(encoded))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close() //nolint:errcheck // what matters was read
	var problem struct {
		Code string `json:"code"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&problem) // not every answer is one
	answer.retryAfter, _ = strconv.Atoi(resp.Header.Get("Retry-After"))
	answer.status, answer.code = resp.StatusCode, problem.Code
	return answer, nil
}

// newDurableSystem is a system whose Redis keeps an append-only file.
func newDurableSystem(t *testing.T, apis, workers int) *system {
	t.Helper()
	redis, err := local.StartRedis(t.Context(), local.RedisConfig{Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = redis.Remove(context.WithoutCancel(t.Context())) })
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: redis, build: plain}
	s.start(apis, workers)
	return s
}

// crashRedisIntoThePast kills Redis, which comes back with what the first half
// of its append-only file says.
func crashRedisIntoThePast(t *testing.T, s *system) {
	t.Helper()
	if err := s.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(s.redis.Dir(), "data", "appendonlydir", "*.incr.aof"))
	if err != nil || len(files) != 1 {
		t.Fatalf("append-only files %v, %v; want one", files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], info.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := s.redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func rollWorkers(_ *testing.T, s *system) {
	for i := range s.workers {
		s.workers[i].stop()
		s.replace(s.workers, i, "worker")
	}
}

func freezeWorker(t *testing.T, s *system) {
	t.Helper()
	testenv.Freeze(t, s.workers[0].cmd.Process.Pid)
}

// thawLater thaws when frozenFor has passed.
func thawLater(t *testing.T, thaw func()) {
	t.Helper()
	select {
	case <-time.After(frozenFor):
	case <-t.Context().Done():
	}
	thaw()
}

// freezePostgres stops all of Postgres: it takes connections, because the kernel
// does, and answers nothing.
func freezePostgres(t *testing.T, s *system) (thaw func()) {
	t.Helper()
	postmaster := s.postgres.PID()
	thawPostmaster := testenv.Freeze(t, postmaster) // first, so that it makes no more
	thawRest := testenv.Freeze(t, childrenOf(t, postmaster)...)
	return func() {
		thawRest()
		thawPostmaster()
	}
}
