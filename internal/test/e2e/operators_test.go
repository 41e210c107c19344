package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/failpoint"
	"github.com/passbook/passbook/internal/test/testenv"
)

// operatorEnv is the environment in which an operator runs commands.
func (s *system) operatorEnv() []string {
	if s.operatorURL == "" {
		return s.env()
	}
	return append(s.env(), "DATABASE_URL="+s.operatorURL) // the last one counts
}

// typed runs a command as an operator types it and returns what it says and its exit code.
func (s *system) typed(line string, more ...string) (said string, code int) {
	s.t.Helper()
	words := append(strings.Fields(line), more...)
	command := beginVariant(s.t, s.build, words[0], s.operatorEnv(), words[1:]...)
	err := command.wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return command.log(), exit.ExitCode()
	}
	if err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
	return command.log(), 0
}

// wantTyped runs a command, which must end with an exit code and say what is wanted.
func (s *system) wantTyped(code int, line string, more []string, want ...string) {
	s.t.Helper()
	said, got := s.typed(line, more...)
	if got != code {
		s.t.Errorf("%s: exit code %d, want %d\n%s", line, got, code, said)
	}
	for _, text := range want {
		if !strings.Contains(said, text) {
			s.t.Errorf("%s does not say %q:\n%s", line, text, said)
		}
	}
}

// What an operator types, with the rights of the operators' role: clients see the statuses at
// once, each action has its row, and the serving role can't act.
func TestOperatorCommands(t *testing.T) {
	t.Parallel()
	s, admin := newServedSystem(t, 1, 1)
	c := newClient(t, s)
	a := c.open(100)
	reason := func(text string) []string { return []string{"--reason", text} }
	ends := func(key string, amount int64, want string) (id string) {
		t.Helper()
		job, err := c.settle(0, jobRequest{a.Number, "deposits", amount, key})
		if err != nil {
			t.Fatal(err)
		}
		s.drained()
		c.must(http.StatusOK, http.MethodGet, "/v1/jobs/"+job.ID, nil, &job)
		if job.outcome() != want {
			t.Errorf("%s: %s, want %s", key, job.outcome(), want)
		}
		return job.ID
	}

	t.Run("Status", func(t *testing.T) {
		s.wantTyped(0, "worker accounts freeze "+a.Number+" --by ann", reason("a court order"), "account "+a.Number+" is frozen", "100 in minor units of KRW")
		ends("frozen", 5, "rejected account_frozen")
		s.wantTyped(0, "worker accounts freeze "+a.Number+" --by bob", reason("again"), "was frozen already")
		s.wantTyped(0, "worker accounts unfreeze "+a.Number, reason("it was lifted"), "is open")
		ends("open", 5, "succeeded seq 2 balance 105")
		s.wantTyped(0, "worker accounts show "+a.Number, nil, a.Number+", open", "waits for  nothing",
			`freeze by "ann" (role passbook_operator): "a court order"`, `(role passbook_operator): "it was lifted"`)
		s.wantTyped(1, "worker accounts freeze nowhere", reason("x"), "account not found")
		s.wantTyped(2, "worker accounts freeze "+a.Number, nil, "--reason")
		s.wantTyped(1, "worker accounts freeze "+a.Number, reason(strings.Repeat("x", 501)), "a reason of 1 to 500")
	})
	t.Run("ServingRole", func(t *testing.T) {
		serving := &system{t: t, postgres: s.postgres, databaseURL: s.databaseURL, redis: s.redis}
		serving.wantTyped(1, "worker accounts freeze "+a.Number, reason("x"), "permission denied")
	})
	t.Run("OperatorRole", func(t *testing.T) { refuseAsOperator(t, s) })
	t.Run("Jobs", func(t *testing.T) {
		s.wantTyped(0, "worker jobs failed", nil, "0 jobs are failed")
		ledgertest.Exec(t, admin, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
		failed, done, unknown := ends("unlucky", 13, "failed internal_error"), ends("more", 1, "succeeded seq 3 balance 106"), uuid.NewString()
		s.refused += ledger.MaxAttempts
		s.wantTyped(0, "worker jobs failed", nil, failed, a.Number, "5", `violates check constraint \"unlucky\"`, "1 jobs are failed")
		ledgertest.Exec(t, admin, `ALTER TABLE transactions DROP CONSTRAINT unlucky`)
		s.wantTyped(1, "worker jobs replay "+done+" "+failed+" "+unknown, nil,
			done+" is not replayed", "it is succeeded", failed+" is queued again", unknown+" is not replayed", "2 of 3 jobs")
		s.drained()
		var job jobAnswer
		c.must(http.StatusOK, http.MethodGet, "/v1/jobs/"+failed, nil, &job)
		if want := "succeeded seq 4 balance 119"; job.outcome() != want {
			t.Errorf("the replayed job: %s, want %s", job.outcome(), want)
		}
		s.wantTyped(0, "worker accounts show "+a.Number, nil, "replay of job "+failed)
		s.wantTyped(2, "worker jobs replay soon", nil, "usage")
	})
	t.Run("Queues", func(t *testing.T) { checkQueues(t, s, c, a) })
	t.Run("Close", func(t *testing.T) {
		s.wantTyped(0, "worker accounts close "+a.Number, reason("the client asked for it"), "is closed", "119 in minor units of KRW")
		status, answer, err := c.send(t.Context(), 0, jobRequest{a.Number, "deposits", 1, "late"})
		if err != nil || status != http.StatusConflict || !strings.Contains(string(answer), "account_closed") {
			t.Errorf("a deposit on a closed account: %d %s %v", status, answer, err)
		}
		s.wantTyped(1, "worker accounts unfreeze "+a.Number, reason("by mistake"), "account closed")
	})
	s.verify()
	t.Run("Verify", func(t *testing.T) {
		s.wantTyped(0, "worker verify", nil, ": 0 mismatches")
		ledgertest.Exec(t, admin, `ALTER TABLE transactions DISABLE TRIGGER transactions_append_only`)
		s.wantTyped(1, "worker verify", nil, "trigger transactions_append_only on transactions does not always fire", "1 mismatches")
	})
}

// refuseAsOperator checks what the operators' role may not do.
func refuseAsOperator(t *testing.T, s *system) {
	t.Helper()
	operators := &system{t: t, postgres: s.postgres, databaseURL: s.operatorURL}
	operators.pool = operators.connect()
	archives := func(sql string) bool { return strings.Contains(sql, "archive_jobs(") } // of finished jobs it may
	for _, sql := range append(slices.DeleteFunc(slices.Clone(forbidden), archives),
		`SELECT FROM users`, `SELECT FROM sessions`, `SELECT FROM refresh_tokens`, `UPDATE accounts SET status = 'frozen'`, `DELETE FROM failures`,
		`INSERT INTO operator_actions (account_id, action, person, reason, role) SELECT id, 'freeze', 'ann', 'x', 'other' FROM accounts`,
		`INSERT INTO operator_actions (account_id, action, person, reason, at) SELECT id, 'freeze', 'ann', 'x', '2020-01-01' FROM accounts`,
		`UPDATE operator_actions SET reason = 'x'`, `DELETE FROM operator_actions`, `TRUNCATE operator_actions`,
		`INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) SELECT gen_random_uuid(), account_id, user_id, type, 5, 'own' FROM jobs`,
		`UPDATE queue SET attempts = 9`, `SELECT apply_job(id, 1000, 0) FROM jobs`, `SELECT close_history(user_id, number, NULL) FROM accounts`,
	) {
		refuseAsServing(t, operators, sql)
	}
}

// checkQueues checks that the commands say who serves a queue, and what keeps a job from being
// applied.
func checkQueues(t *testing.T, s *system, c *client, a account) {
	t.Helper()
	worker := regexp.MustCompile(fmt.Sprintf(`passbook:tx:\d+ +0 .* false +\S+/%d/\S+ +ok\n`, s.workers[0].cmd.Process.Pid))
	if said, code := s.typed("worker queues"); code != 0 || len(worker.FindAllString(said, -1)) != queues.Partitions || !strings.Contains(said, "0 jobs are queued") {
		t.Errorf("exit code %d:\n%s", code, said)
	}
	var id int64
	if err := s.pool.QueryRow(t.Context(), `SELECT id FROM accounts WHERE number = $1`, a.Number).Scan(&id); err != nil {
		t.Fatal(err)
	}
	r := s.redisClient()
	own := queue.Queues{Prefix: "passbook", Partitions: queues.Partitions}
	paused := "asynq:{" + own.Of(id) + "}:paused"
	if err := r.Set(t.Context(), paused, 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	waits := regexp.MustCompile(own.Of(id) + ` +[1-9].* true +\S+ +paused\n`)
	testenv.Eventually(t, "the worker to leave the paused queue alone", func() bool { // a task that it already has goes on taking jobs
		job, err := c.settle(0, jobRequest{a.Number, "withdrawals", 100000, uuid.NewString()})
		if err != nil {
			t.Fatal(err)
		}
		shown, _ := s.typed("worker accounts show " + a.Number)
		listed, code := s.typed("worker queues")
		return strings.Contains(shown, "which is paused") && strings.Contains(shown, job.ID) && code == 0 && waits.MatchString(listed)
	})
	if err := r.Del(t.Context(), paused).Err(); err != nil {
		t.Fatal(err)
	}
	s.drained()
}

// Both programs and all their commands say what they do and which build they are, and change
// nothing by it. A command line that can't be read ends with 2.
func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	for _, command := range []string{
		"api", "api migrate", "worker", "worker verify", "worker queues", "worker archive", "worker jobs", "worker jobs failed", "worker jobs replay",
		"worker accounts", "worker accounts show", "worker accounts freeze", "worker accounts unfreeze", "worker accounts close",
	} {
		s.wantTyped(0, command+" --help", nil, "Usage: "+command, "--help", "--version")
		s.wantTyped(0, command+" --version", nil, strings.Fields(command)[0]+" ", "schema version")
	}
	for _, line := range []string{"api serve now", "worker unknown", "worker accounts", "worker accounts show", "worker jobs replay", "worker --unknown", "worker archive"} {
		s.wantTyped(2, line, nil, "usage: ", "--help")
	}
	s.wantTyped(0, "api migrate --status", nil, "00001_schema.sql", "applied", "0 of ")
	s.wantTyped(0, "api migrate", nil, "0 migrations applied, 0 sequences advanced")
}

// operatorCrashes are the points at which a command of an operator dies, and whether its action
// was done.
var operatorCrashes = map[failpoint.Point]bool{failpoint.ActionUncommitted: false, failpoint.ActionCommitted: true}

// A command that dies before its commit has done nothing. One that dies behind it has done all,
// with its row, and typed again it says so.
func TestOperatorCrashes(t *testing.T) {
	t.Parallel()
	for point, done := range operatorCrashes {
		t.Run(string(point), func(t *testing.T) {
			t.Parallel()
			s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: armed}
			s.pool = s.connect()
			account := ledgertest.Account(t, s.pool, ledgertest.User(t, s.pool), 100)
			job := ledgertest.Job(t, s.pool, account, ledger.Deposit, 13)
			ledgertest.Exec(t, s.pool, `INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'internal_error' FROM queue`)
			for _, line := range []string{"jobs replay " + job.String(), "accounts freeze " + account.Number + " --reason x"} {
				dies := beginVariant(t, armed, "worker", append(s.env(), failpoint.Variable+"="+string(point)), strings.Fields(line)...)
				if err := dies.wait(); err == nil || !strings.Contains(dies.log(), point.KillMessage()) {
					t.Fatalf("%s: %v\n%s", line, err, dies.log())
				}
			}
			check := func(done bool, when string) {
				t.Helper()
				view, err := ledger.NewOperator(s.pool, "ann").Account(t.Context(), account.Number)
				if err != nil {
					t.Fatal(err)
				}
				if (view.Status == ledger.Frozen) != done || (view.Queued == 1) != done || (len(view.Actions) == 2) != done || !done && len(view.Actions) > 0 {
					t.Errorf("%s: %+v, want done %t", when, view, done)
				}
			}
			check(done, "after the crash")
			s.wantTyped(map[bool]int{true: 1}[done], "worker jobs replay "+job.String(), nil, map[bool]string{true: "it is queued", false: "is queued again"}[done])
			s.wantTyped(0, "worker accounts freeze "+account.Number+" --reason x", nil, map[bool]string{true: "was frozen already", false: "is frozen"}[done])
			check(true, "typed again")
			s.verify()
		})
	}
}
