//go:build hosts

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/network"
	"github.com/passbook/passbook/internal/test/testenv"
)

// TestHosts is TestChaos on ten hosts of a network: the faults are those of the network and of whole
// hosts. `make hosts` runs it, in a network namespace of its own.
func TestHosts(t *testing.T) {
	h := newHosts(t)
	h.under(func() { h.injectAll(h.faults()) })
	h.summary()
	dropped, lost, delayed := h.network.Dropped.Load(), h.network.Lost.Load(), h.network.Delayed.Load()
	h.say("packets: %d dropped, %d lost, %d delayed", dropped, lost, delayed)
	if *chaosFaults == "" && (dropped == 0 || lost == 0 || delayed == 0) {
		t.Error("a fault of the network did nothing")
	}
}

// hosts is a bank on ten hosts: two with an API each, three with a worker each, three with two nodes
// each of a Redis cluster, and two with a Postgres each, of which one is the other's synchronous
// standby.
type hosts struct {
	*chaos
	network                           *network.Network
	apiHosts, workerHosts, redisHosts []*network.Host
	primaryHost, standbyHost          *network.Host
	cluster                           *testenv.Cluster
	standby                           *local.Postgres
}

func newHosts(t *testing.T) *hosts {
	t.Helper()
	h := &hosts{chaos: &chaos{t: t, seed: drawnSeed(), target: "hosts", injected: map[string]int{}}}
	h.network = network.New(t, h.seed)
	h.apiHosts, h.workerHosts, h.redisHosts = h.some("api", chaosAPIs), h.some("worker", chaosWorkers), h.some("redis", 3)
	h.primaryHost, h.standbyHost = h.network.Host("primary"), h.network.Host("standby")

	primary := testenv.PostgresServerOn(t, h.primaryHost.At)
	h.standby = testenv.PostgresStandbyOn(t, h.standbyHost.At, primary)
	h.cluster = testenv.RedisClusterOn(t, at(h.redisHosts))
	h.system = &system{
		t: t, postgres: primary, databaseURL: testenv.EitherURL(t, primary.URL(), h.standby.URL()) + "&connect_timeout=2",
		redisURL: h.cluster.URL(), reach: h.listen, build: plain,
	}
	h.system.pool = h.system.connect()
	h.apis, h.workers = h.membersOn("api", h.apiHosts), h.membersOn("worker", h.workerHosts)
	h.system.apis, h.system.workers = make([]*process, chaosAPIs), make([]*process, chaosWorkers)
	h.start()
	return h
}

func (h *hosts) some(name string, count int) (some []*network.Host) {
	for n := range count {
		some = append(some, h.network.Host(fmt.Sprint(name, " ", n)))
	}
	return some
}

func at(some []*network.Host) (hosts []*local.Host) {
	for _, one := range some {
		hosts = append(hosts, one.At)
	}
	return hosts
}

func (h *hosts) membersOn(name string, on []*network.Host) (members []*member) {
	for n, host := range on {
		members = append(members, &member{name: name, n: n, host: host.At})
	}
	return members
}

// listen has an API listen at its host's address.
func (h *hosts) listen(name string, n int) []string {
	if name != "api" {
		return nil
	}
	return []string{"HTTP_ADDR=" + net.JoinHostPort(h.apiHosts[n].At.Address, "8080")}
}

// everyHost is every host, without the test's own.
func (h *hosts) everyHost() []*network.Host {
	return slices.Concat(h.apiHosts, h.workerHosts, h.redisHosts, h.postgresHosts())
}

func (h *hosts) postgresHosts() []*network.Host {
	return []*network.Host{h.primaryHost, h.standbyHost}
}

// faults returns all kinds, or the kinds that the run names.
func (h *hosts) faults() []fault {
	const s, ms = time.Second, time.Millisecond
	all := []fault{
		{"two hosts parted", s, 8 * s, h.parted},
		{"one host does not hear another", s, 8 * s, h.deaf},
		{"one host parted from all others", s, 8 * s, h.alone},
		{"the hosts parted in two", s, 8 * s, h.halves},
		{"primary and standby parted", s, 8 * s, h.withoutStandby},
		{"one host does not hear any other", s, 8 * s, h.deafToAll},
		{"one host far away", 2 * s, 8 * s, h.oneFar},
		{"all hosts far away from each other", 2 * s, 6 * s, h.allFar},

		{"api killed", 0, s, h.ended(h.apis, syscall.SIGKILL)},
		{"worker killed", 0, s, h.ended(h.workers, syscall.SIGKILL)},
		{"a redis host's nodes killed", 500 * ms, 4 * s, h.redisKilled},
		{"postgres crashed", 0, 3 * s, h.postgresCrashed},
	}
	return slices.DeleteFunc(all, func(f fault) bool { return !strings.Contains(f.name, *chaosFaults) })
}

// lasting heals after as long as the fault lasts.
func (h *hosts) lasting(lasts time.Duration, heal func()) {
	h.last(lasts)
	heal()
}

// two draws two hosts.
func (h *hosts) two(r *rand.Rand) (one, other []*network.Host) {
	drawn := h.shuffled(r)
	return drawn[:1], drawn[1:2]
}

func (h *hosts) shuffled(r *rand.Rand) []*network.Host {
	all := h.everyHost()
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func (h *hosts) parted(r *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Part(h.two(r)))
}

func (h *hosts) deaf(r *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Drop(h.two(r)))
}

func (h *hosts) alone(r *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Part(h.shuffled(r)[:1], h.everyHost()))
}

func (h *hosts) deafToAll(r *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Drop(h.everyHost(), h.shuffled(r)[:1]))
}

func (h *hosts) halves(r *rand.Rand, lasts time.Duration) {
	all := h.shuffled(r)
	some := 2 + r.IntN(len(all)-3)
	h.lasting(lasts, h.network.Part(all[:some], all[some:]))
}

func (h *hosts) withoutStandby(_ *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Part([]*network.Host{h.primaryHost}, []*network.Host{h.standbyHost}))
}

func (h *hosts) oneFar(r *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Far(h.shuffled(r)[0]))
}

func (h *hosts) allFar(_ *rand.Rand, lasts time.Duration) {
	h.lasting(lasts, h.network.Far(h.everyHost()...))
}

// redisKilled kills the nodes of one host, which come back empty, and may have been replaced.
func (h *hosts) redisKilled(r *rand.Rand, lasts time.Duration) {
	h.redisBusy.Lock()
	defer h.redisBusy.Unlock()
	host := h.redisHosts[r.IntN(len(h.redisHosts))].At
	nodes := slices.DeleteFunc(slices.Clone(h.cluster.Nodes), func(node *local.Redis) bool { return node.Host() != host })
	for _, node := range nodes {
		if err := node.Kill(); err != nil {
			h.violation("killing a node: %v", err)
		}
	}
	h.last(lasts)
	for _, node := range nodes {
		if err := node.Restart(h.t.Context()); err != nil {
			h.violation("a node does not come back: %v", err)
		}
	}
}

// refusalWait is how long an API without Postgres may take for a 503, on a machine that runs all of
// the hosts.
const refusalWait = refusalBound + 2*loadBound

// hostLostBound is failoverBound and the bounds of what waits for a host that answers nothing: the
// applies under way, and the connects, which begin with that host.
const hostLostBound = failoverBound + postgres.RoundTripTimeout + 2*loadBound

// Each case is a fault that no process of ours notices at once. Clients send requests all the time,
// as in TestHosts, and what they were answered is checked after all cases.
func TestHostsByHand(t *testing.T) {
	h := newHosts(t)
	p := h.newProbe()
	h.under(func() {
		for _, test := range []struct {
			name string
			run  func(*testing.T, *hosts, *probe)
		}{
			{"PrimaryWithoutStandby", primaryWithoutStandby},
			{"APIWithoutPostgres", apiWithoutPostgres},
			{"APIThatPostgresDoesNotReach", apiThatPostgresDoesNotReach},
			{"WorkerWithoutRedis", workerWithoutRedis},
			{"WorkersWithoutRedis", workersWithoutRedis},
			{"WorkerWithoutPostgres", workerWithoutPostgres},
			{"RedisMinority", redisMinority},
			{"AllFar", allFar},
			{"PrimaryHostLost", primaryHostLost}, // the last: there is no other standby
		} {
			t.Run(test.name, func(t *testing.T) { test.run(t, h, p) })
		}
	})
	h.summary()
}

// probe is a client that wants to know how one API answers.
type probe struct {
	*hosts
	number string
	sent   int
}

func (h *hosts) newProbe() *probe {
	h.t.Helper()
	return &probe{hosts: h, number: h.login().open(0).Number}
}

func decodes(answer []byte, into any) bool { return json.Unmarshal(answer, into) == nil }

// post sends a deposit to one API.
func (p *probe) post(t *testing.T, api int) (status int, answer []byte, took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p.sent++
	began := time.Now()
	status, answer, err := p.load.login.Load().request(ctx, p.system.api(api), http.MethodPost,
		"/v1/accounts/"+p.number+"/deposits", fmt.Sprint("probe-", p.sent), map[string]any{"amount": 1})
	if err != nil {
		t.Fatalf("API %d: %v", api, err)
	}
	return status, answer, time.Since(began)
}

// refuses checks that an API answers 503, and soon.
func (p *probe) refuses(t *testing.T, api int) {
	t.Helper()
	const times = 2
	for range times {
		status, answer, took := p.post(t, api)
		if status != http.StatusServiceUnavailable || problemCode(answer) != "unavailable" || took > refusalWait {
			t.Errorf("API %d answers %d %s after %v, want 503 within %v", api, status, answer, took, refusalWait)
		}
	}
}

// works checks that an API accepts a deposit again, and that the job finishes.
func (p *probe) works(t *testing.T, api int) (id string) {
	t.Helper()
	began := time.Now()
	var job jobAnswer
	testenv.Eventually(t, fmt.Sprintf("API %d to accept", api), func() bool {
		status, answer, _ := p.post(t, api)
		return status == http.StatusAccepted && decodes(answer, &job)
	})
	accepted := time.Since(began)
	p.finishes(t, api, job.ID)
	t.Logf("API %d accepted after %v, and the job was finished after %v", api, accepted, time.Since(began))
	return job.ID
}

// accepts checks that an API accepts a deposit now, and that the job finishes.
func (p *probe) accepts(t *testing.T, api int) (id string) {
	t.Helper()
	status, answer, took := p.post(t, api)
	var job jobAnswer
	if status != http.StatusAccepted || !decodes(answer, &job) {
		t.Fatalf("API %d answers %d %s after %v, want 202", api, status, answer, took)
	}
	p.finishes(t, api, job.ID)
	return job.ID
}

// finishes waits until an API shows a job finished, for no longer than a sweep may take that has to
// apply jobs itself.
func (p *probe) finishes(t *testing.T, api int, id string) {
	t.Helper()
	testenv.Eventually(t, "job "+id+" to finish", func() bool {
		status, job, _ := p.get(t, api, id)
		return status == http.StatusOK && job.Status != "queued"
	})
}

// get reads a job at one API. The status is 0 where no answer came.
func (p *probe) get(t *testing.T, api int, id string) (status int, job jobAnswer, answer []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tryTimeout)
	defer cancel()
	status, answer, err := p.load.login.Load().request(ctx, p.system.api(api), http.MethodGet, "/v1/jobs/"+id, "", nil)
	if err != nil || status == http.StatusOK && !decodes(answer, &job) {
		return 0, job, answer
	}
	return status, job, answer
}

// Every commit waits for a standby that the primary does not reach: the APIs refuse, soon, and tell
// nothing of what is committed on the primary alone.
func primaryWithoutStandby(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	heal := h.network.Part([]*network.Host{h.primaryHost}, []*network.Host{h.standbyHost})
	defer heal()
	for api := range chaosAPIs {
		p.refuses(t, api)
	}
	heal()
	for api := range chaosAPIs {
		p.works(t, api)
	}
}

// An API that reaches Redis and not Postgres refuses, soon; the other one accepts.
func apiWithoutPostgres(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	heal := h.network.Part(h.apiHosts[:1], h.postgresHosts())
	defer heal()
	p.refuses(t, 0)
	p.accepts(t, 1)
	heal()
	p.works(t, 0)
}

// The API's statements arrive, and no answer comes back: what it committed is not told, and the same
// key finds it at the other API.
func apiThatPostgresDoesNotReach(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	heal := h.network.Drop(h.postgresHosts(), h.apiHosts[:1])
	defer heal()
	p.refuses(t, 0)
	p.accepts(t, 1)
	heal()
	p.works(t, 0)
}

// A worker that reaches Postgres and not Redis leaves its partitions to the others.
func workerWithoutRedis(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	heal := h.network.Part(h.workerHosts[:1], h.redisHosts)
	defer heal()
	p.acceptsForAll(t)
}

// While no worker reaches Redis the sweep applies jobs.
func workersWithoutRedis(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	heal := h.network.Part(h.workerHosts, h.redisHosts)
	defer heal()
	p.acceptsForAll(t)
}

// A worker that reaches Redis and not Postgres takes tasks and can't apply any: the sweep of the
// others finds their accounts, also those that it has locked.
func workerWithoutPostgres(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	heal := h.network.Part(h.workerHosts[:1], h.postgresHosts())
	defer heal()
	p.acceptsForAll(t)
}

// acceptsForAll sends a deposit for each of some accounts, of nearly all partitions, and checks that
// the jobs finish.
func (p *probe) acceptsForAll(t *testing.T) {
	t.Helper()
	const accounts = 2 * partitions
	jobs := make([]jobAnswer, accounts)
	for n := range jobs {
		p.number = p.load.login.Load().open(0).Number
		if status, answer, took := p.post(t, n%chaosAPIs); status != http.StatusAccepted || !decodes(answer, &jobs[n]) {
			t.Fatalf("API %d answers %d %s after %v, want 202", n%chaosAPIs, status, answer, took)
		}
	}
	began := time.Now()
	for n, job := range jobs {
		p.finishes(t, n%chaosAPIs, job.ID)
	}
	t.Logf("%d jobs were finished %v after the last accept", accounts, time.Since(began))
}

// A third of the cluster is parted from the rest, together with an API and a worker. Its masters stop
// taking writes, replicas on the other side take over, and both APIs' jobs finish, before and after
// the network is healed.
func redisMinority(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	minority := []*network.Host{h.redisHosts[0], h.apiHosts[0], h.workerHosts[0]}
	majority := slices.Concat(h.redisHosts[1:], h.apiHosts[1:], h.workerHosts[1:])
	var lost []int
	for n, node := range h.cluster.Nodes {
		if node.Host() == h.redisHosts[0].At && h.cluster.IsMaster(n) {
			lost = append(lost, n)
		}
	}
	heal := h.network.Part(minority, majority)
	defer heal()
	if masters := h.mastersOutside(h.redisHosts[0].At); len(lost) == 1 && masters == 2 { // earlier cases may have moved masters
		testenv.Eventually(t, "a replica to take over", func() bool { return h.mastersOutside(h.redisHosts[0].At) == 3 })
	}
	for api := range chaosAPIs {
		p.accepts(t, api)
	}
	heal()
	testenv.Eventually(t, "the masters of the minority to be replicas", func() bool {
		return !slices.ContainsFunc(lost, h.cluster.IsMaster)
	})
	for api := range chaosAPIs {
		p.works(t, api)
	}
}

// mastersOutside counts the masters on other hosts.
func (h *hosts) mastersOutside(host *local.Host) (masters int) {
	for n, node := range h.cluster.Nodes {
		if node.Host() != host && h.cluster.IsMaster(n) {
			masters++
		}
	}
	return masters
}

// With every host far away from every other one, requests are accepted and finish, if more slowly.
func allFar(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	near := h.network.Far(h.everyHost()...)
	defer near()
	for api := range chaosAPIs {
		p.works(t, api)
	}
}

// The primary's host is gone: its packets are dropped, which is no refusal. An operator's tool
// promotes the standby, and the processes find it.
func primaryHostLost(t *testing.T, h *hosts, p *probe) {
	t.Helper()
	h.network.Part([]*network.Host{h.primaryHost}, append(h.everyHost(), h.network.Self)) // for good
	for api := range chaosAPIs {
		p.refuses(t, api)
	}
	promoted := time.Now()
	if err := h.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.system.pool.Reset()
	for api := range chaosAPIs {
		p.works(t, api)
	}
	if took := time.Since(promoted); took > hostLostBound {
		t.Errorf("the service took %v to go on after %v, want %v at most", took, promoted, hostLostBound)
		for _, m := range h.workers {
			t.Logf("%s:\n%s", m, h.process(m).log())
		}
	}
}

// The old primary still runs when the standby is promoted, and an API reaches no other server. That
// API accepts nothing, and does not deny a job that the new primary has accepted, but what it shows of
// older rows may be out of date: docs/operations.md says to stop the old primary first.
func TestHostsOldPrimary(t *testing.T) {
	h := newHosts(t)
	p := h.newProbe()
	before := p.accepts(t, 1)
	old := []*network.Host{h.primaryHost, h.apiHosts[0]}
	heal := h.network.Part(old, slices.DeleteFunc(h.everyHost(), func(host *network.Host) bool { return slices.Contains(old, host) }))
	defer heal()
	p.refuses(t, 0)
	if err := h.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := p.works(t, 1)
	p.refuses(t, 0)
	for _, id := range []string{before, after} {
		if status, job, answer := p.get(t, 0, id); status != http.StatusServiceUnavailable && (id == after || status != http.StatusOK || job.Status != "succeeded") {
			t.Errorf("API 0 answers %d %s for job %s; want 503, or 200 for %s, which finished before", status, answer, id, before)
		}
	}
	if err := h.system.postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	heal()
	p.works(t, 0)
	h.system.pool.Reset()
	h.system.verify()
}
