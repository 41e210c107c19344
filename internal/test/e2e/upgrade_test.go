package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

// repository is the root of ours, from here.
var repository = filepath.Join("..", "..", "..")

// slowestAnswer is the most that a client waits for anything: the API's own
// bound on a request, and what a loaded machine adds.
const slowestAnswer = 4 * time.Second

// This build replaces the build of the commit in upgrade_from, one process after another,
// on one database and under load. Both builds work side by side in every combination, and
// clients see no error but a 503 that says when to try again.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	u := newUpgrade(t)
	var w responseCheck
	u.c.watch = w.see
	const clients = 4
	clientsAtWork := startLoad(u.c, clients)
	steps := []struct {
		name string
		do   func()
	}{
		{"OldOnly", func() {}},
		{"NewSchema", u.migrate},
		{"NewAPI", func() { u.replaceAPI(0) }}, // and its jobs go to old workers
		{"BothUnderstandEachOther", u.understand},
		{"BothWorkers", func() { u.replaceWorker(0) }},
		{"NoWorkerForAWhile", u.pauseWorkers}, // then new ones, for jobs of the old API
		{"NewOnly", func() { u.replaceAPI(1) }},
	}
	for _, step := range steps {
		started := time.Now()
		step.do()
		u.awaitDone(step.name, &w)
		t.Logf("%s: %v", step.name, time.Since(started).Round(time.Millisecond))
	}
	clientsAtWork.stop()
	u.checkTasks()
	w.check(t, slowestAnswer)
}

// upgrade is a system in the middle of a rolling upgrade.
type upgrade struct {
	*system
	c        *client
	old      variant
	balancer *balancer
}

// newUpgrade starts a system of the old build, with its own schema.
func newUpgrade(t *testing.T) *upgrade {
	t.Helper()
	// The folder of the sources is a new one each time: with -trimpath the build cache knows the packages.
	old := variant{name: "old", source: oldSource(t), flags: []string{"-trimpath"}}
	for _, build := range []variant{old, plain} { // before the load begins
		if _, err := build.build(); err != nil {
			t.Fatal(err)
		}
	}
	u := &upgrade{
		system:   &system{t: t, postgres: testenv.EmptyPostgresServer(t), redis: testenv.RedisServer(t)},
		old:      old,
		balancer: newBalancer(t),
	}
	u.pool = u.connect()
	u.end(beginVariant(t, u.old, "api", u.env(), "migrate"))
	for range 2 {
		u.apis = append(u.apis, startVariant(t, u.old, "api", u.env()))
		u.workers = append(u.workers, startVariant(t, u.old, "worker", u.env()))
	}
	for _, p := range u.apis {
		u.balancer.add(p.addr)
	}
	u.front = u.balancer.url
	u.c = newSignedUpClient(t, u.system)
	return u
}

func (u *upgrade) end(p *process) {
	u.t.Helper()
	if err := p.wait(); err != nil {
		u.t.Fatalf("%s: %v\n%s", p.name, err, p.log())
	}
}

// migrate brings this build's schema in while the old processes work; they stay
// ready on it.
func (u *upgrade) migrate() {
	u.t.Helper()
	u.end(begin(u.t, "api", u.env(), "migrate"))
	for _, p := range append(u.apis, u.workers...) {
		if status, body := get(u.t, p.operator()+"/readyz"); status != http.StatusOK {
			u.t.Errorf("an old %s on the new schema: %d %s", p.name, status, body)
		}
	}
}

// replaceAPI does what an operator does: the new one enters the rotation when it
// is ready, the old one leaves it, and is stopped.
func (u *upgrade) replaceAPI(n int) {
	u.t.Helper()
	old := u.apis[n]
	u.apis[n] = start(u.t, "api", u.env())
	u.balancer.add(u.apis[n].addr)
	u.balancer.remove(old.addr)
	old.stop()
}

func (u *upgrade) replaceWorker(n int) {
	u.t.Helper()
	u.workers[n].stop()
	u.workers[n] = start(u.t, "worker", u.env())
}

// pauseWorkers stops every worker, has each API accept a job, and starts new
// workers, which must find all that was accepted meanwhile.
func (u *upgrade) pauseWorkers() {
	u.t.Helper()
	for _, p := range u.workers {
		p.stop()
	}
	a := u.c.open(0)
	var ids []string
	for _, p := range u.apis {
		job, err := u.at(p).settle(0, jobRequest{a.Number, "deposits", 1, "no-worker-" + p.addr})
		if err != nil {
			u.t.Fatal(err)
		}
		if job.Status != "queued" {
			u.t.Errorf("without a worker, a job is %s", job.Status)
		}
		ids = append(ids, job.ID)
	}
	for n := range u.workers {
		u.workers[n] = start(u.t, "worker", u.env())
	}
	testenv.Eventually(u.t, "the new workers find the jobs of before", func() bool { return len(u.c.history(a.Number)) == len(ids) })
}

// understand checks that an old and a new API take what the other gave out, both
// ways.
func (u *upgrade) understand() {
	u.t.Helper()
	for _, way := range []struct {
		name     string
		from, to *process
	}{{"FromOldToNew", u.apis[1], u.apis[0]}, {"FromNewToOld", u.apis[0], u.apis[1]}} {
		from, to := u.at(way.from), u.at(way.to)
		a := from.open(100)
		req := jobRequest{a.Number, "deposits", 1, way.name}
		job, err := from.settle(0, req)
		if err != nil {
			u.t.Fatal(err)
		}
		if again, err := to.settle(0, req); err != nil || again.ID != job.ID {
			u.t.Errorf("%s: the key of job %s answers with %s, %v", way.name, job.ID, again.ID, err)
		}
		u.passTokens(from, to)
		u.passCursor(from, to)
	}
}

// passTokens has the user log in at one API and go on at the other.
func (u *upgrade) passTokens(from, to *client) {
	u.t.Helper()
	var tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	from.must(http.StatusCreated, http.MethodPost, "/v1/sessions", from.user, &tokens)
	to = to.with(tokens.Access)
	to.must(http.StatusOK, http.MethodGet, "/v1/users/me", nil, nil)
	to.must(http.StatusCreated, http.MethodPost, "/v1/sessions/refresh", map[string]string{"refresh_token": tokens.Refresh}, nil)
}

// passCursor reads a list's first page at one API and its second at the other.
func (u *upgrade) passCursor(from, to *client) {
	u.t.Helper()
	var first, second page[account]
	from.must(http.StatusOK, http.MethodGet, "/v1/accounts?limit=1", nil, &first)
	to.must(http.StatusOK, http.MethodGet, "/v1/accounts?limit=1&cursor="+*first.NextCursor, nil, &second)
	if len(second.Data) != 1 || second.Data[0].Number == first.Data[0].Number {
		u.t.Errorf("after %+v comes %+v", first.Data, second.Data)
	}
}

// at is the client at one of the APIs, past the balancer.
func (u *upgrade) at(p *process) *client {
	c := *u.c
	c.system = &system{t: u.t, front: "http://" + p.addr}
	return &c
}

func (c *client) with(token string) *client {
	other := *c
	other.token = token
	return &other
}

// awaitDone waits until the processes that are there now have accepted jobs, each
// API some of them, and these are done.
func (u *upgrade) awaitDone(step string, w *responseCheck) {
	u.t.Helper()
	const some = 60
	u.balancer.resetServed()
	w.awaitAccepted(u.t, some)
	var last int64
	const lastSQL = `SELECT max(position) FROM jobs`
	if err := u.pool.QueryRow(u.t.Context(), lastSQL).Scan(&last); err != nil {
		u.t.Fatal(err)
	}
	testenv.Eventually(u.t, step+": the jobs are done", func() bool {
		const sql = `SELECT NOT EXISTS (SELECT FROM job_states WHERE status = 'queued' AND position <= $1)`
		var done bool
		return u.pool.QueryRow(u.t.Context(), sql, last).Scan(&done) == nil && done
	})
	for addr, n := range u.balancer.resetServed() {
		if n == 0 {
			u.t.Errorf("%s: API %s had no request", step, addr)
		}
	}
}

// checkTasks fails the test if a worker did not understand a task: Asynq archives such a
// task.
func (u *upgrade) checkTasks() {
	u.t.Helper()
	r := u.redisClient()
	keys, err := r.Keys(u.t.Context(), "asynq:{*}:archived").Result()
	if err != nil || len(keys) > 0 {
		u.t.Errorf("bad tasks in %v, %v", keys, err)
	}
}

// upgradeFrom is the commit whose build is running out there when this one
// comes: it moves forwards with what is released, and only then. HEAD stands for the last
// commit, where none is named yet.
func upgradeFrom(t *testing.T) string {
	t.Helper()
	line, err := os.ReadFile("upgrade_from")
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(string(line))
	if _, err := git(t, "cat-file", "-e", commit+"^{commit}"); err != nil {
		t.Fatalf("commit %s of internal/test/e2e/upgrade_from is not here; this test needs the repository with its history"+
			" (git clone; in a shallow clone: git fetch --unshallow): %v", commit, err)
	}
	return commit
}

// git runs it at the root of the repository.
func git(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = repository
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git %s: %w: %s", args[0], err, bytes.TrimSpace(said.Bytes()))
	}
	return out, nil
}

// oldSource is a folder with the sources of the commit in upgrade_from, for as
// long as the test runs.
func oldSource(t *testing.T) string {
	t.Helper()
	archive, err := git(t, "archive", "--format=tar", upgradeFrom(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	untar := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	untar.Stdin = bytes.NewReader(archive)
	if out, err := untar.CombinedOutput(); err != nil {
		t.Fatalf("unpack the old sources: %v\n%s", err, out)
	}
	return dir
}

// What a migration did is done: the old ones stay as they are, and new ones come
// after them.
func TestMigrationsOnlyGrow(t *testing.T) {
	t.Parallel()
	commit := upgradeFrom(t)
	const folder, migration = "migrations/", "0*.sql"
	listed, err := git(t, "ls-tree", "--name-only", commit, folder)
	if err != nil {
		t.Fatal(err)
	}
	var last string
	old := map[string]bool{}
	for name := range strings.FieldsSeq(string(listed)) {
		if is, err := path.Match(folder+migration, name); err != nil || !is {
			continue
		}
		was, err := git(t, "show", commit+":./"+name)
		if err != nil {
			t.Fatal(err)
		}
		is, err := os.ReadFile(filepath.Join(repository, name))
		if err != nil || !bytes.Equal(was, is) {
			t.Errorf("%s is not what it was in %s (%v): write a new migration instead", name, commit, err)
		}
		old[path.Base(name)], last = true, max(last, path.Base(name))
	}
	if len(old) == 0 {
		t.Fatalf("%s has no migrations", commit)
	}
	now, err := filepath.Glob(filepath.Join(repository, folder, migration))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range now {
		if name = filepath.Base(name); !old[name] && name < last {
			t.Errorf("%s comes before %s, which is applied already: number it after", name, last)
		}
	}
}
