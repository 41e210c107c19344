package e2e_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// system is Passbook as it is run: apis and workers on one Postgres and one
// Redis, which are its own.
type system struct {
	t           testing.TB
	postgres    *local.Postgres
	databaseURL string // where all processes find Postgres; empty for postgres's own
	operatorURL string // where operators find it; empty for databaseURL
	replicaURL  string // where APIs find histories; where empty, in Postgres
	redis       *local.Redis
	redisURL    string        // where all processes find Redis; empty for redis's own
	pool        *pgxpool.Pool // past the API, for what the API does not tell
	counts      bool          // its database counts attempts
	refused     int           // attempts that the test has Postgres refuse
	front       string        // where set, the load balancer that clients go through
	build       variant       // of its processes

	// reach says how a process reaches the stores; nil is directly.
	reach func(name string, n int) []string

	mu      sync.Mutex // guards the rest
	apis    []*process
	workers []*process
}

func newSystem(t testing.TB, build variant, apis, workers int) *system {
	t.Helper()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: build}
	s.start(apis, workers)
	return s
}

func (s *system) start(apis, workers int) {
	s.t.Helper()
	s.pool = s.connect()
	owner := s.pool
	if s.postgres != nil {
		owner = (&system{t: s.t, postgres: s.postgres}).connect()
	}
	ledgertest.CountAttempts(s.t, owner)
	s.counts = true
	for n := range apis {
		s.apis = append(s.apis, startVariant(s.t, s.build, "api", s.envOf("api", n)))
	}
	for n := range workers {
		s.workers = append(s.workers, startVariant(s.t, s.build, "worker", s.envOf("worker", n)))
	}
}

func (s *system) connect() *pgxpool.Pool {
	s.t.Helper()
	pool, err := pgxpool.New(s.t.Context(), s.url())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(pool.Close)
	return pool
}

// envOf is the environment of the n-th process of a name.
func (s *system) envOf(name string, n int) []string {
	env := s.env()
	if s.reach != nil {
		env = append(env, s.reach(name, n)...)
	}
	return env
}

// redisClient returns a client of the system's Redis, open until the test ends.
func (s *system) redisClient() *redis.Client {
	s.t.Helper()
	options, err := redis.ParseURL(s.redis.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	r := redis.NewClient(options)
	s.t.Cleanup(func() { _ = r.Close() }) // nothing is pending on it
	return r
}

func (s *system) url() string {
	if s.databaseURL != "" {
		return s.databaseURL
	}
	return s.postgres.URL()
}

func (s *system) queuesURL() string {
	if s.redisURL != "" {
		return s.redisURL
	}
	return s.redis.URL()
}

func (s *system) env() []string {
	return []string{
		"DATABASE_URL=" + s.url(),
		"READ_DATABASE_URL=" + s.replicaURL,
		"REDIS_URL=" + s.queuesURL(),
		"JWT_KEYS=k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
		"HTTP_ADDR=127.0.0.1:0",
		"OPS_ADDR=127.0.0.1:0",
		"RATE_LIMIT_PER_MINUTE=0", "ADDRESS_LIMIT_PER_MINUTE=0", // all clients of a test have one address, and some ask without a pause
		"GORACE=halt_on_error=1 atexit_sleep_ms=0",
	}
}

// api is the address of one of the APIs, whichever process is that now.
func (s *system) api(n int) string {
	if s.front != "" {
		return s.front
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return "http://" + s.apis[n%len(s.apis)].address()
}

// crashAPI kills one API with SIGKILL and starts another in its place.
func (s *system) crashAPI(n int) {
	s.apis[n].kill()
	s.replace(s.apis, n, "api")
}

// crashWorker does the same to a worker.
func (s *system) crashWorker(n int) {
	s.workers[n].kill()
	s.replace(s.workers, n, "worker")
}

func (s *system) replace(processes []*process, n int, name string) {
	next := startVariant(s.t, s.build, name, s.envOf(name, n))
	s.mu.Lock()
	defer s.mu.Unlock()
	processes[n] = next
}

// verify verifies the ledger as an operator, as `worker verify` does, and looks whether Postgres
// had to refuse what the code should not have tried.
func (s *system) verify() {
	s.t.Helper()
	if s.counts {
		if n := ledgertest.Attempts(s.t, s.pool); n != s.refused {
			s.t.Errorf("Postgres refused %d attempts, want %d", n, s.refused)
		}
	}
	operator := s.pool
	if s.operatorURL != "" {
		operator = (&system{t: s.t, databaseURL: s.operatorURL}).connect()
	}
	ledgertest.Check(s.t, operator)
}

// drained waits until no job is queued, for as long as there is progress.
func (s *system) drained() {
	s.t.Helper()
	for left := s.queued(); left > 0; {
		before := left
		testenv.Eventually(s.t, fmt.Sprintf("progress with %d queued jobs", left), func() bool {
			left = s.queued()
			return left < before
		})
	}
}

func (s *system) queued() (n int) {
	s.t.Helper()
	if err := s.pool.QueryRow(s.t.Context(), `SELECT count(*) FROM queue`).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}
