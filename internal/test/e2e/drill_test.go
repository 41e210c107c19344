//go:build deploy

package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The commands of docs/operations.md restore a bank to a moment, from a base backup and the WAL archive,
// and on another server, from a dump; each time with an empty Redis. Every job that was queued then
// finishes. Outcomes from before the moment are the same. Jobs from after it do not exist.
func TestDrill(t *testing.T) {
	d := newDrill(t)
	d.asPostgres("base backup")
	d.deposit("finished", 40)
	d.s.drained()
	d.s.workers[0].stop()
	d.deposit("queued", 60)
	d.run("dump")
	d.until = d.now()
	d.deposit("late", 10)
	d.loseServer()

	t.Run("PointInTime", func(t *testing.T) {
		d.asPostgres("restore to a point in time")
		if err := d.server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.awaitPromotion()
		d.check(t, d.server)
	})
	t.Run("Dump", func(t *testing.T) {
		other := testenv.EmptyPostgresServer(t)
		d.target = other.URL()
		d.run("restore a dump")
		d.check(t, other)
	})
}

// drill is a bank with backups.
type drill struct {
	t        *testing.T
	s        *system // as it is before the loss
	c        *client
	server   *local.Postgres
	admin    *pgxpool.Pool
	accounts []account
	outcomes map[string]string // of each finished job, by its key
	backups  string
	until    string // the moment to restore
	target   string // where a dump goes to
}

func newDrill(t *testing.T) *drill {
	t.Helper()
	d := &drill{t: t, outcomes: map[string]string{}}
	d.s, d.admin = newServedSystem(t, 0, 0)
	d.server = d.s.postgres
	d.backups = filepath.Join(d.server.Dir(), "backups") // Postgres's user writes there
	d.archive()
	d.s.apis = []*process{start(t, "api", d.s.env())}
	d.s.workers = []*process{start(t, "worker", d.s.env())}
	d.c = newSignedUpClient(t, d.s)
	for range 5 {
		d.accounts = append(d.accounts, d.c.open(1000))
	}
	return d
}

// archive makes the server archive its WAL, by the settings of the document.
func (d *drill) archive() {
	d.t.Helper()
	d.execute(d.t, "/", d.owner(), "mkdir -p "+d.backups+"/wal")
	for line := range strings.Lines(strings.ReplaceAll(d.block("conf", "archive"), "/var/backups/passbook", d.backups)) {
		name, value, isSetting := strings.Cut(strings.TrimSpace(line), " = ")
		if !isSetting {
			continue
		}
		if _, err := d.admin.Exec(d.t.Context(), `ALTER SYSTEM SET `+name+` = '`+strings.ReplaceAll(strings.Trim(value, "'"), "'", "''")+`'`); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := d.server.Restart(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	d.admin.Reset()
	d.s.pool.Reset()
}

// block is the document's block of a language whose first line is the name.
func (d *drill) block(language, name string) string {
	d.t.Helper()
	text := string(readFile(d.t, filepath.Join(repository, "docs", "operations.md")))
	begin := "```" + language + "\n# " + name + "\n"
	if n := strings.Count(text, begin); n != 1 {
		d.t.Fatalf("%d blocks %q in docs/operations.md, want one", n, name)
	}
	_, block, _ := strings.Cut(text, begin)
	block, _, _ = strings.Cut(block, "```")
	return block
}

// run runs a block of the document in the repository, and asPostgres as Postgres's user.
func (d *drill) run(name string) {
	d.t.Helper()
	d.execute(d.t, repository, nil, d.block("sh", name))
}

func (d *drill) asPostgres(name string) {
	d.t.Helper()
	d.execute(d.t, "/", d.owner(), d.block("sh", name))
}

// owner is the user that the server runs as.
func (d *drill) owner() *syscall.Credential {
	d.t.Helper()
	info, err := os.Stat(d.server.Dir())
	if err != nil {
		d.t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		d.t.Fatal("no owner")
	}
	return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
}

func (d *drill) execute(t *testing.T, dir string, user *syscall.Credential, commands string) string {
	t.Helper()
	programs, err := plain.build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", commands)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + programs + ":" + d.server.Bin() + ":" + os.Getenv("PATH"), "HOME=/tmp",
		"DATABASE_URL=" + d.url(), "BACKUPS=" + d.backups, "BASE=" + filepath.Join(d.backups, "base"), "PGDATA=" + filepath.Join(d.server.Dir(), "data"),
		"UNTIL=" + d.until, "TARGET=" + d.target,
	}
	if user != nil && os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	}
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, commands, said)
	}
	return string(said)
}

// url is the superuser's, of the server that a dump went to once there is one.
func (d *drill) url() string {
	if d.target != "" {
		return d.target
	}
	return d.server.URL()
}

// deposit sends n deposits and withdrawals, and keeps the outcomes of those that finish.
func (d *drill) deposit(kind string, n int) {
	d.t.Helper()
	for i := range n {
		request := d.request(kind, i)
		job, err := d.c.settle(0, request)
		if err != nil {
			d.t.Fatal(err)
		}
		if kind == "finished" {
			d.c.must(http.StatusOK, http.MethodGet, "/v1/jobs/"+job.ID+"?wait=30", nil, &job)
			d.outcomes[request.key] = job.outcome()
		}
	}
}

// request is the i-th request of a kind, a deposit or a withdrawal.
func (d *drill) request(kind string, i int) jobRequest {
	number := d.accounts[i%len(d.accounts)].Number
	if i%2 == 1 {
		return jobRequest{number, "withdrawals", 5, fmt.Sprintf("%s-%d", kind, i)}
	}
	return jobRequest{number, "deposits", 10, fmt.Sprintf("%s-%d", kind, i)}
}

// now is the moment after all that was committed, on Postgres's clock.
func (d *drill) now() (moment string) {
	d.t.Helper()
	if err := d.admin.QueryRow(d.t.Context(), `SELECT clock_timestamp()::text`).Scan(&moment); err != nil {
		d.t.Fatal(err)
	}
	return moment
}

// loseServer archives the last WAL and stops all processes. The archive has the late jobs too: only
// recovery_target_time keeps them out of the restored bank.
func (d *drill) loseServer() {
	d.t.Helper()
	var segment string
	if err := d.admin.QueryRow(d.t.Context(), `SELECT pg_walfile_name(pg_switch_wal())`).Scan(&segment); err != nil {
		d.t.Fatal(err)
	}
	testenv.Eventually(d.t, segment+" is archived", func() bool {
		_, err := os.Stat(filepath.Join(d.backups, "wal", segment))
		return err == nil
	})
	d.s.apis[0].stop()
	if err := d.server.Kill(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *drill) awaitPromotion() {
	d.t.Helper()
	d.admin.Reset()
	testenv.Eventually(d.t, "the restored server takes writes", func() bool {
		recovers := true
		err := d.admin.QueryRow(d.t.Context(), `SELECT pg_is_in_recovery()`).Scan(&recovers)
		return err == nil && !recovers
	})
}

// check starts the processes on a restored server with an empty Redis, and checks all that
// clients see.
func (d *drill) check(t *testing.T, server *local.Postgres) {
	t.Helper()
	if said := d.execute(t, repository, nil, d.block("sh", "after a restore")); !strings.Contains(said, "0 sequences advanced") {
		t.Errorf("the restore left sequences behind: %s", said)
	}
	command(t, d.server.Program("psql"), "-X", "-d", server.URL(), "-c",
		`ALTER ROLE passbook_serving LOGIN PASSWORD 'serving'; ALTER ROLE passbook_operator LOGIN PASSWORD 'operator'`) // a dump has no roles
	s := &system{
		t: t, postgres: server, redis: testenv.RedisServer(t),
		databaseURL: testenv.As(t, server.URL(), "passbook_serving", "serving"), operatorURL: testenv.As(t, server.URL(), "passbook_operator", "operator"),
	}
	s.pool = s.connect()
	if n := s.queued(); n != 60 {
		t.Errorf("%d jobs are queued, want 60", n)
	}
	s.apis = []*process{start(t, "api", s.env())}
	s.workers = []*process{start(t, "worker", s.env())}
	s.drained()
	c := *d.c // the user, whose token is still good
	c.t, c.system = t, s
	for _, a := range d.accounts {
		jobs := map[string]string{} // outcome by id
		for _, job := range c.jobs(a.Number) {
			jobs[job.ID] = job.outcome()
			if job.Status != "succeeded" {
				t.Errorf("%s: %+v", a.Number, job)
			}
		}
		if want := 20; len(jobs) != want { // of the five accounts' 40 and 60
			t.Errorf("%s has %d jobs, want %d", a.Number, len(jobs), want)
		}
		c.checkHistory(a.Number)
	}
	for i := range 40 {
		request := d.request("finished", i)
		job, err := c.settle(0, request)
		if err != nil || job.outcome() != d.outcomes[request.key] {
			t.Errorf("%s: %s, %v; before the loss it was %s", request.key, job.outcome(), err, d.outcomes[request.key])
		}
	}
	for i := range 10 { // as new jobs, behind all others of their accounts
		if _, err := c.settle(0, d.request("late", i)); err != nil {
			t.Error(err)
		}
	}
	s.drained()
	for _, a := range d.accounts {
		if got := c.account(a.Number); got.LastSeq != 1+20+2 {
			t.Errorf("%s has %d transactions, want 23", a.Number, got.LastSeq)
		}
	}
	s.verify()
	s.apis[0].stop()
	s.workers[0].stop()
}
