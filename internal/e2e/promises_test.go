package e2e_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/local"
	"github.com/passbook/passbook/internal/testenv"
)

var (
	promisesCrashes   = flag.Int("promises.crashes", 3, "how often TestPromises crashes Postgres")
	promisesUnflushed = flag.Bool("promises.unflushed", false, "let every apply of TestPromises commit without a flush: it must fail, unless reads wait for one")
)

// Bounds of a round, and of what leads to a crash.
const (
	crashesARound = 10  // what clients were told is remembered for so many crashes
	newsUnderLoad = 300 // before a crash, at most
	newsOfBacklog = 20
	backlog       = 400 // jobs that are queued before a crash over a backlog
)

// What a client was told never changes. Postgres crashes again and again, in the middle of
// batches, while clients send orders and others read all that can be read, as fast as they
// can. In the end everything that any of them was told must read the same.
func TestPromises(t *testing.T) {
	t.Parallel()
	s := newFragileSystem(t)
	started, changed := time.Now(), 0
	for n := 0; n < *promisesCrashes && changed == 0; {
		r := newRound(t, s)
		for last := min(n+crashesARound, *promisesCrashes); n < last && changed == 0; n++ {
			crash := drawnCrash(n)
			r.crash(crash)
			var answers, news int
			answers, news, changed = r.told.count()
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
	const apis, workers = 2, 2
	s := &system{t: t, redis: testenv.RedisServer(t), postgres: testenv.PostgresServerWith(t, map[string]string{
		"wal_writer_delay":       "10s",
		"wal_writer_flush_after": "1GB",
		"wal_buffers":            "16MB", // full ones are written
		"commit_delay":           "0",
		"full_page_writes":       "on", // kill -9 may tear a page
	})}
	s.reach = func(string, int) []string { return []string{"RATE_LIMIT_PER_MINUTE=0", "QUEUE_PARTITIONS=2"} }
	s.pool = s.connect()
	if *promisesUnflushed {
		ledgertest.Exec(t, s.pool, `CREATE FUNCTION unflushed() RETURNS trigger LANGUAGE plpgsql AS
			$$BEGIN PERFORM set_config('synchronous_commit', 'off', true); RETURN NEW; END$$`)
		ledgertest.Exec(t, s.pool, `CREATE TRIGGER unflushed BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION unflushed()`)
	}
	for n := range apis {
		s.apis = append(s.apis, startVariant(t, s.build, "api", s.envOf("api", n)))
	}
	for n := range workers {
		s.workers = append(s.workers, startVariant(t, s.build, "worker", s.envOf("worker", n)))
	}
	return s
}

// postgresCrash is one way in which Postgres crashes, and what clients do then.
type postgresCrash struct {
	kill func(testing.TB, *local.Postgres)
	how  string
	only *readRoute // accepts pause, and readers use no other; nil is the whole load
}

func (c postgresCrash) String() string {
	if c.only != nil {
		return fmt.Sprintf("%s over a backlog, while clients read %s", c.how, c.only.name)
	}
	return c.how + " under load"
}

// drawnCrash is the n-th crash: each kind in turn, every second one over a backlog. Those
// begin with any route and go through all.
func drawnCrash(n int) (c postgresCrash) {
	c.kill, c.how = killPostgres, "kill -9"
	if n/2%2 == 1 {
		c.kill, c.how = stopPostgres, "immediate stop"
	}
	if n%2 == 0 {
		c.only = &readRoutes[(firstRoute+n/2)%len(readRoutes)]
	}
	return c
}

var firstRoute = rand.IntN(len(readRoutes))

// killPostgres is kill -9 of every process of the server. The first one is stopped before,
// so that it starts no other meanwhile.
func killPostgres(t testing.TB, server *local.Postgres) {
	t.Helper()
	ended := server.Done()
	first := server.PID()
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", first, first))
	if err != nil {
		t.Fatal(err)
	}
	var others []int
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, pid)
	}
	for _, pid := range append(others, first) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("kill %d: %v", pid, err)
		}
	}
	<-ended
	for _, pid := range others {
		testenv.Eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !runs(pid) })
	}
}

// runs returns whether the process exists and is more than a zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, found := strings.Cut(string(stat), ") ")
	return err == nil && found && state[0] != 'Z' && state[0] != 'X'
}

// stopPostgres is pg_ctl -m immediate stop.
func stopPostgres(t testing.TB, server *local.Postgres) {
	t.Helper()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
}

// crash crashes Postgres when clients have just been told some news, and starts it again.
func (r *round) crash(c postgresCrash) {
	r.t.Helper()
	goOn, most := func() {}, newsUnderLoad
	if c.only != nil {
		goOn, most = r.queueBacklog(c.only), newsOfBacklog
	}
	_, before, _ := r.told.count()
	some := 1 + rand.IntN(most)
	testenv.Eventually(r.t, fmt.Sprintf("%d more news are told", some), func() bool {
		_, news, changed := r.told.count()
		return news >= before+some || changed > 0
	})
	c.kill(r.t, r.s.postgres)
	goOn()
	if err := r.s.postgres.Restart(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.s.pool.Reset()
}

// queueBacklog freezes the workers until backlog jobs are queued, pauses the accepts and
// lets readers use one route only. goOn ends both.
func (r *round) queueBacklog(only *readRoute) (goOn func()) {
	r.t.Helper()
	var pids []int
	for _, worker := range r.s.workers {
		pids = append(pids, worker.cmd.Process.Pid)
	}
	thaw := testenv.Freeze(r.t, pids...)
	testenv.Eventually(r.t, fmt.Sprintf("%d jobs are queued", backlog), func() bool { return r.s.queued() >= backlog })
	r.sending.Lock()
	r.only.Store(only)
	thaw()
	return func() {
		r.only.Store(nil)
		r.sending.Unlock()
	}
}
