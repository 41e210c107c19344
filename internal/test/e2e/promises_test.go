package e2e_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

var (
	promisesCrashes   = flag.Int("promises.crashes", 3, "how often TestPromises crashes Postgres")
	promisesUnflushed = flag.Bool("promises.unflushed", false, "let every apply of TestPromises commit without a flush: it must fail, unless reads wait for one")
)

// Bounds of a round, and of what leads to a crash.
const (
	crashesARound = 10  // the record is kept for so many crashes
	newsUnderLoad = 300 // before a crash, at most
	newsOfBacklog = 20
	backlog       = 400 // jobs that are queued before a crash over a backlog
)

// An answer never changes. Postgres crashes again and again, in the middle of batches,
// while clients send requests and other clients read everything, as fast as they can. In the
// end everything that a client has read must read the same.
func TestPromises(t *testing.T) {
	t.Parallel()
	s := newFragileSystem(t)
	s.start(2, 2)
	crashAgainAndAgain(t, s)
}

// crashAgainAndAgain crashes the system's Postgres promisesCrashes times under load.
func crashAgainAndAgain(t *testing.T, s *system) {
	t.Helper()
	if *promisesUnflushed {
		ledgertest.Exec(t, s.pool, `CREATE FUNCTION unflushed() RETURNS trigger LANGUAGE plpgsql AS
			$$BEGIN PERFORM set_config('synchronous_commit', 'off', true); RETURN OLD; END$$`)
		ledgertest.Exec(t, s.pool, `CREATE TRIGGER unflushed BEFORE DELETE ON queue FOR EACH ROW EXECUTE FUNCTION unflushed()`)
	}
	started, changed := time.Now(), 0
	for n := 0; n < *promisesCrashes && changed == 0; {
		r := newRound(t, s)
		for last := min(n+crashesARound, *promisesCrashes); n < last && changed == 0; n++ {
			crash := drawnCrash(n)
			r.crash(crash)
			var answers, news int
			answers, news, changed = r.record.count()
			t.Logf("%4.0fs crash %d of %d, %s: %d answers since the round began, %d of them news, %d changed",
				time.Since(started).Seconds(), n+1, *promisesCrashes, crash, answers, news, changed)
		}
		r.end()
	}
	s.verify()
}

// newFragileSystem is a system whose Postgres writes its log only where a commit asks for
// it: a crash loses all that no commit has flushed.
func newFragileSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, redis: testenv.RedisServer(t), postgres: testenv.PostgresServerWith(t, map[string]string{
		"wal_writer_delay":       "10s",
		"wal_writer_flush_after": "1GB",
		"wal_buffers":            "16MB", // full ones are written
		"commit_delay":           "0",
		"full_page_writes":       "on", // kill -9 may tear a page
	})}
	s.reach = promisesEnv
	return s
}

// promisesEnv is for clients that send as much as they can, so that batches are full.
func promisesEnv(string, int) []string {
	return []string{"RATE_LIMIT_PER_MINUTE=0", "QUEUE_PARTITIONS=2"}
}

// A failover loses what the workers committed and the standby never got. No answer shows
// it, although every session of the primary sees it.
func TestPromisesFailover(t *testing.T) {
	t.Parallel()
	const some = 100
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), reach: promisesEnv}
	standby := testenv.PostgresStandby(t, s.postgres)
	s.databaseURL = testenv.EitherURL(t, s.postgres.URL(), standby.URL())
	s.start(2, 2)
	r := newRound(t, s)
	r.awaitNews(some)
	thaw, goOn := r.queueBacklog(nil)
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	queued := s.queued()
	thaw()
	testenv.Eventually(t, "jobs are applied that the standby has not got", func() bool { return s.queued() < queued })
	r.readEverything()
	applied := queued - s.queued()
	thaw = r.freezeWorkers()
	killPostgres(t, s.postgres)
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pool.Reset()
	if again := s.queued(); again < queued {
		t.Errorf("%d jobs are queued after the failover, want the %d before", again, queued)
	}
	t.Logf("%d jobs had been applied on the primary alone", applied)
	thaw()
	goOn()
	r.awaitNews(some)
	r.end()
	s.verify()
}

// postgresCrash is one way in which Postgres crashes, and what clients do then.
type postgresCrash struct {
	crashKind
	only *readRoute // accepts pause, and readers use no other; nil is the whole load
}

// crashKind crashes a server; back waits until it is up again.
type crashKind struct {
	how   string
	crash func(testing.TB, *local.Postgres) (back func())
}

func (c postgresCrash) String() string {
	if c.only != nil {
		return fmt.Sprintf("%s over a backlog, while clients read %s", c.how, c.only.name)
	}
	return c.how + " under load"
}

var crashKinds = []crashKind{
	{"kill -9", killPostgres},
	{"immediate stop", stopPostgres},
	{"kill -9 of one process", killOneOfPostgres},
}

// drawnCrash is the n-th crash: each kind in turn, every second one over a backlog. Those
// begin with any route and go through all.
func drawnCrash(n int) postgresCrash {
	c := postgresCrash{crashKind: crashKinds[n%len(crashKinds)]}
	if n%2 == 0 {
		c.only = &readRoutes[(firstRoute+n/2)%len(readRoutes)]
	}
	return c
}

var firstRoute = rand.IntN(len(readRoutes))

// killPostgres is kill -9 of every process of the server. The first one is stopped before,
// so that it starts no other meanwhile.
func killPostgres(t testing.TB, server *local.Postgres) (back func()) {
	t.Helper()
	ended, first := server.Done(), server.PID()
	signal(t, first, syscall.SIGSTOP)
	others := childrenOf(t, first)
	for _, pid := range append(others, first) {
		signal(t, pid, syscall.SIGKILL)
	}
	<-ended
	awaitGone(t, others)
	return restart(t, server)
}

// stopPostgres is pg_ctl -m immediate stop.
func stopPostgres(t testing.TB, server *local.Postgres) (back func()) {
	t.Helper()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	return restart(t, server)
}

func restart(t testing.TB, server *local.Postgres) (back func()) {
	t.Helper()
	return func() {
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// killOneOfPostgres is kill -9 of one process. The first one, which stays, ends the others,
// since their memory may be damaged, and recovers as after any crash.
func killOneOfPostgres(t testing.TB, server *local.Postgres) (back func()) {
	t.Helper()
	others := childrenOf(t, server.PID())
	signal(t, others[rand.IntN(len(others))], syscall.SIGKILL)
	return func() {
		awaitGone(t, others)
		testenv.Eventually(t, "Postgres answers again", func() bool {
			conn, err := pgx.Connect(t.Context(), server.URL())
			return err == nil && conn.Close(t.Context()) == nil
		})
	}
}

func signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("%v to process %d: %v", s, pid, err)
	}
}

// childrenOf finds the processes that a process has started.
func childrenOf(t testing.TB, pid int) (children []int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(text)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	if len(children) == 0 {
		t.Fatalf("process %d has no children", pid)
	}
	return children
}

func awaitGone(t testing.TB, pids []int) {
	t.Helper()
	for _, pid := range pids {
		testenv.Eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !runs(pid) })
	}
}

// runs returns whether the process exists and is more than a zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, found := strings.Cut(string(stat), ") ")
	return err == nil && found && state[0] != 'Z' && state[0] != 'X'
}

// crash crashes Postgres when clients have just read some news, and starts it again.
func (r *round) crash(c postgresCrash) {
	r.t.Helper()
	goOn, most := func() {}, newsUnderLoad
	if c.only != nil {
		var thaw func()
		thaw, goOn = r.queueBacklog(c.only)
		most = newsOfBacklog
		thaw()
	}
	r.awaitNews(1 + rand.IntN(most))
	back := c.crash(r.t, r.s.postgres)
	goOn()
	back()
	r.s.pool.Reset()
}

// awaitNews waits until clients have read n more news.
func (r *round) awaitNews(n int) {
	r.t.Helper()
	_, before, _ := r.record.count()
	testenv.Eventually(r.t, fmt.Sprintf("%d more news are read", n), func() bool {
		_, news, changed := r.record.count()
		return news >= before+n || changed > 0
	})
}

// queueBacklog freezes the workers until backlog jobs are queued, pauses the accepts and
// lets readers use one route only. thaw lets the workers apply the backlog. goOn lets the accepts and
// all routes go on; the end of the test does too.
func (r *round) queueBacklog(only *readRoute) (thaw, goOn func()) {
	r.t.Helper()
	thaw = r.freezeWorkers()
	testenv.Eventually(r.t, fmt.Sprintf("%d jobs are queued", backlog), func() bool { return r.s.queued() >= backlog })
	r.sending.Lock()
	r.only.Store(only)
	goOn = sync.OnceFunc(func() {
		r.only.Store(nil)
		r.sending.Unlock()
	})
	r.t.Cleanup(goOn)
	return thaw, goOn
}

func (r *round) freezeWorkers() (thaw func()) {
	r.t.Helper()
	var pids []int
	for _, worker := range r.s.workers {
		pids = append(pids, worker.cmd.Process.Pid)
	}
	return testenv.Freeze(r.t, pids...)
}
