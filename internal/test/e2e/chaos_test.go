package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

var (
	chaosFor    = flag.Duration("chaos.for", 10*time.Second, "how long TestChaos injects faults")
	chaosThink  = flag.Duration("chaos.think", 200*time.Millisecond, "the longest pause between a client's requests")
	chaosSeed   = flag.Uint64("chaos.seed", 0, "repeats a schedule; 0 draws one")
	chaosFaults = flag.String("chaos.faults", "", "only the faults whose names contain this")
	chaosClocks = flag.Bool("chaos.clocks", false, "let an api's and two workers' clocks be wrong by an hour; the first time compiles Go itself, for minutes")
	chaosKeep   = flag.String("chaos.keep", "", "where the pictures of what is wrong go; empty is the system's folder for temporary files")
)

// The size of the system and of its load.
const (
	chaosAPIs    = 2
	chaosWorkers = 3
	loners       = 16 // accounts of one client each, which sends one request at a time
	crowds       = 4  // accounts that several clients work on at once
	crowd        = 6
)

// Clients send requests and read while every kind of fault is injected, first one kind at a
// time, then all kinds together. After all faults are repaired and all jobs finished, the
// answers must be those of a bank with a single thread: see check.
func TestChaos(t *testing.T) {
	c := newChaos(t)
	c.under(func() { c.injectAll(c.faults()) })
	c.summary()
}

// injectAll injects the faults of the schedule that the seed draws.
func (c *chaos) injectAll(faults []fault) {
	injections := plan(c.seed, *chaosFor, faults)
	c.say("seed %d: %v, %d injections of %d kinds", c.seed, *chaosFor, len(injections), len(faults))
	var injecting sync.WaitGroup
	for _, s := range injections {
		c.load.pause(s.at - c.load.now())
		injecting.Go(func() { c.inject(s) })
	}
	injecting.Wait()
}

// under has clients send requests and read while inject runs, and checks what they were answered.
func (c *chaos) under(inject func()) {
	c.t.Helper()
	stopReports := c.report()
	c.t.Cleanup(stopReports)
	clients := c.load.start(c.seed)
	stopClients := sync.OnceFunc(func() {
		close(c.load.stop)
		clients.Wait()
	})
	c.t.Cleanup(stopClients)
	inject()
	c.repair()
	repaired := time.Now()
	stopClients()
	c.drain(repaired)
	stopReports()
	c.check()
}

// chaos is a system whose network can have faults, and its load.
type chaos struct {
	t      *testing.T
	seed   uint64
	target string // of make
	system *system
	load   *chaosLoad

	apis, workers []*member
	postgresBusy  sync.Mutex // held by the fault that is injected into Postgres
	redisBusy     sync.Mutex

	mu       sync.Mutex // guards the rest
	now      []string   // the faults that are on
	injected map[string]int
	found    []string
	rates    []int // requests accepted, for each line of the report
	drained  time.Duration
}

// member is one position in the system: when its process is killed, the next process
// takes the position.
type member struct {
	name            string
	n               int
	busy            sync.Mutex // held by the fault that is injected into the process
	host            *local.Host
	postgres, redis *link
	skew            time.Duration // by which its clock is wrong
	leaving         atomic.Bool   // its process was asked to end
}

func newChaos(t *testing.T) *chaos {
	t.Helper()
	c := &chaos{t: t, seed: drawnSeed(), target: "chaos", injected: map[string]int{}}
	c.system = &system{t: t, postgres: testenv.PostgresServer(t), redis: chaosRedis(t), reach: c.reach, build: raced}
	c.system.pool = c.system.connect()
	c.apis, c.workers = c.members("api", chaosAPIs), c.members("worker", chaosWorkers)
	c.system.apis, c.system.workers = make([]*process, chaosAPIs), make([]*process, chaosWorkers)
	c.start()
	return c
}

func drawnSeed() uint64 {
	if *chaosSeed != 0 {
		return *chaosSeed
	}
	return rand.Uint64()
}

// start starts the processes, and logs a client in.
func (c *chaos) start() {
	c.t.Helper()
	if *chaosClocks {
		c.setClocks()
	}
	for _, m := range c.all() {
		c.begin(m)
	}
	c.ready()
	login := newSignedUpClient(c.t, c.system)
	login.http.Timeout = 0 // each try has its own
	c.load = newLoad(c, login)
}

// setClocks lets an api run an hour ahead, a worker too, and one behind.
func (c *chaos) setClocks() {
	c.t.Helper()
	var err error
	if c.system.build, err = skewed(); err != nil {
		c.t.Fatal(err)
	}
	c.apis[1].skew, c.workers[1].skew, c.workers[2].skew = time.Hour, time.Hour, -time.Hour
}

// chaosRedis keeps an append-only file, as in production, and gives in to a
// script that doesn't end soon enough for a test.
func chaosRedis(t *testing.T) *local.Redis {
	t.Helper()
	server, err := local.StartRedis(t.Context(), local.RedisConfig{
		Durable: true, Settings: map[string]string{"lua-time-limit": "300"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return server
}

func (c *chaos) members(name string, n int) []*member {
	var members []*member
	for i := range n {
		label := fmt.Sprint(name, " ", i)
		members = append(members, &member{
			name: name, n: i,
			postgres: newLink(c.t, label+" to postgres", c.system.postgres.URL()),
			redis:    newLink(c.t, label+" to redis", c.system.redis.URL()),
		})
	}
	return members
}

func (c *chaos) all() []*member { return slices.Concat(c.apis, c.workers) }

func (c *chaos) reach(name string, n int) []string {
	m := c.workers[n%len(c.workers)]
	if name == "api" {
		m = c.apis[n]
	}
	return []string{"DATABASE_URL=" + m.postgres.url, "REDIS_URL=" + m.redis.url}
}

// place is where the system keeps the member's process.
func (c *chaos) place(m *member) *(*process) {
	if m.name == "api" {
		return &c.system.apis[m.n]
	}
	return &c.system.workers[m.n]
}

func (c *chaos) process(m *member) *process {
	c.system.mu.Lock()
	defer c.system.mu.Unlock()
	return *c.place(m)
}

// begin starts the member's next process. A process that ends without being asked to is a
// violation.
func (c *chaos) begin(m *member) {
	p := beginVariantOn(c.t, m.host, c.system.build, m.name, append(c.system.envOf(m.name, m.n), skewEnv(m.skew)))
	c.system.mu.Lock()
	*c.place(m) = p
	c.system.mu.Unlock()
	m.leaving.Store(false)
	go func() {
		<-p.done
		if !m.leaving.Load() && c.process(m) == p {
			c.violation("%s %d ended by itself: %v\n%s", m.name, m.n, p.err, p.log())
		}
	}()
}

func (m *member) String() string { return fmt.Sprint(m.name, " ", m.n) }

// ready waits until every process is.
func (c *chaos) ready() {
	c.t.Helper()
	for _, m := range c.all() {
		p := c.process(m)
		select {
		case <-p.ready:
		case <-time.After(patience):
			c.t.Fatalf("%s does not get ready\n%s", m, p.log())
		}
	}
}

// violation notes what no fault excuses; the run goes on, to find the rest.
func (c *chaos) violation(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// inject injects one fault.
func (c *chaos) inject(i injection) {
	c.mu.Lock()
	c.injected[i.fault.name]++
	c.now = append(c.now, i.fault.name)
	c.mu.Unlock()
	var watching sync.WaitGroup
	if i.fault.refuses() && i.lasts >= longRefusal {
		watching.Go(func() { c.finishesDuring(i) })
	}
	i.fault.inject(rand.New(rand.NewPCG(i.seed, 1)), i.lasts)
	watching.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := slices.Index(c.now, i.fault.name); at >= 0 {
		c.now = slices.Delete(c.now, at, at+1)
	}
}

// repair waits until every process is ready: each fault has already been repaired.
func (c *chaos) repair() {
	c.t.Helper()
	c.ready()
	c.system.pool.Reset()
}

const drainWait = 90 * time.Second

// drain waits until no job is queued, and notes how long that took.
func (c *chaos) drain(repaired time.Time) {
	c.t.Helper()
	deadline := time.After(drainWait)
	tick := time.NewTicker(tryPause)
	defer tick.Stop()
	for c.system.queued() > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			c.violation("%d jobs are still queued %v after all was repaired", c.system.queued(), drainWait)
			return
		}
	}
	c.drained = time.Since(repaired)
}

// start starts the clients; they end when the load stops.
func (l *chaosLoad) start(seed uint64) *sync.WaitGroup {
	var group sync.WaitGroup
	n := uint64(0)
	clients := func(shared *sharedBook, count int) {
		for range count {
			n++
			random := rand.New(rand.NewPCG(seed, n))
			group.Go(func() { l.client(shared, random) })
		}
	}
	for range loners {
		clients(&sharedBook{sequential: true}, 1)
	}
	for range crowds {
		clients(&sharedBook{}, crowd)
	}
	for api := range watchers {
		group.Go(func() { l.watcher(api) })
	}
	group.Go(l.stayLoggedIn)
	return &group
}

const reportEvery = 2 * time.Second

// report writes a line every reportEvery until stop.
func (c *chaos) report() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				c.say("%s", c.line())
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(done)
		<-ended
	})
}

func (c *chaos) say(format string, args ...any) {
	fmt.Fprintf(c.t.Output(), format+"\n", args...)
}

// line says how many requests were accepted, in all and since the last line, how many were
// refused or unanswered, and which faults are injected now.
func (c *chaos) line() string {
	accepted, refused, silent := c.load.tally(acceptedRequest), c.load.tally(refused503), c.load.tally(noAnswer)
	c.mu.Lock()
	defer c.mu.Unlock()
	last := 0
	for _, n := range c.rates {
		last += n
	}
	c.rates = append(c.rates, accepted-last)
	return fmt.Sprintf("%5.0fs %7d accepted (+%d) %6d unavailable %6d unanswered %3d violations  %s",
		c.load.now().Seconds(), accepted, accepted-last, refused, silent, len(c.found), strings.Join(c.now, ", "))
}

// summary lists the injected faults, the tries and the violations.
func (c *chaos) summary() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.say("\ninjected:")
	for _, name := range slices.Sorted(maps.Keys(c.injected)) {
		c.say("%5d  %s", c.injected[name], name)
	}
	c.say("tried:")
	for _, what := range slices.Sorted(maps.Keys(c.load.tries)) {
		c.say("%7d  %s", c.load.tries[what], what)
	}
	c.say("accepted, every %v:\n  %s", reportEvery, bars(c.rates))
	c.say("everything was applied %v after the last fault was repaired", c.drained.Round(time.Millisecond))
	again := fmt.Sprintf("the same schedule of faults again: make %s SEED=%d MINUTES=%g", c.target, c.seed, chaosFor.Minutes())
	if len(c.found) == 0 {
		c.say("found nothing wrong; %s", again)
		return
	}
	const most = 20
	for i, violation := range c.found {
		if i == most {
			c.t.Errorf("and %d more", len(c.found)-most)
			break
		}
		c.t.Errorf("VIOLATION: %s", violation)
	}
	c.t.Errorf("found %d violations; %s", len(c.found), again)
}

// bars draws numbers, each a bar of eight heights.
func bars(numbers []int) string {
	heights := []rune("▁▂▃▄▅▆▇█")
	highest := max(1, slices.Max(append(numbers, 0)))
	var drawn strings.Builder
	for _, n := range numbers {
		drawn.WriteRune(heights[n*(len(heights)-1)/highest])
	}
	return drawn.String()
}

// end ends a process: kill -9, or SIGTERM in order.
func (c *chaos) end(m *member, in syscall.Signal) {
	const stopWait = 30 * time.Second
	p := c.process(m)
	m.leaving.Store(true)
	_ = p.cmd.Process.Signal(in) // an error says that it is gone
	select {
	case <-p.done:
		if in == syscall.SIGTERM && p.err != nil && p.isReady() { // before, it may not have learnt to stop yet
			c.violation("%s, asked to stop, ended with %v\n%s", m, p.err, p.log())
		}
	case <-time.After(stopWait):
		c.violation("%s does not stop\n%s", m, p.log())
		p.kill()
	}
}
