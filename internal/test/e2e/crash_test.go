package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/failpoint"
	"github.com/passbook/passbook/internal/test/testenv"
)

// armed is the build with failpoints. All programs of an environment are of this build,
// whether a failpoint is set or not.
var armed = variant{name: "armed", flags: []string{"-tags=failpoints"}}

// anyNumber stands where the number of tasks may differ between runs.
const anyNumber = -1

// crashRow says where a process dies and what must be there right after, before another
// process does anything.
type crashRow struct {
	point   failpoint.Point
	pass    int                     // which passing of it kills; 0 is the first
	program string                  // the one that dies
	lead    func(*crashEnvironment) // up to its death
	jobs    string                  // in Postgres, in the order of their accepts
	tasks   int                     // in Redis, those of the dead worker too
	sweep   bool                    // only the sweep enqueues the account again
}

// taskJobs is how many jobs a worker applies of one task.
const taskJobs = 64

var crashes = []crashRow{
	{point: failpoint.OpenUncommitted, program: "api", lead: opening(0), jobs: "none"},
	{point: failpoint.OpenCommitted, program: "api", lead: opening(1), jobs: "none"},

	{point: failpoint.AcceptCollected, program: "api", lead: thirdRequest, jobs: "2 queued", tasks: 2},
	{point: failpoint.AcceptCommitted, program: "api", lead: thirdRequest, jobs: "3 queued", tasks: 2, sweep: true},
	{point: failpoint.AcceptNotified, program: "api", lead: thirdRequest, jobs: "3 queued", tasks: anyNumber, sweep: true},
	{point: failpoint.ResponseUnwritten, program: "api", lead: thirdRequest, jobs: "3 queued", tasks: anyNumber, sweep: true},
	{point: failpoint.AcceptCollected, program: "api", lead: batchOfThree, jobs: "1 queued", tasks: 1},
	{point: failpoint.AcceptCommitted, program: "api", lead: batchOfThree, jobs: "4 queued", tasks: 1, sweep: true},
	{point: failpoint.AcceptNotified, program: "api", lead: batchOfThree, jobs: "4 queued", tasks: anyNumber, sweep: true},
	{point: failpoint.ResponseUnwritten, program: "api", lead: batchOfThree, jobs: "4 queued", tasks: anyNumber, sweep: true},
	{point: failpoint.NotificationsCollected, program: "api", lead: thirdRequest, jobs: "3 queued", tasks: 2, sweep: true},
	{point: failpoint.NotificationsWritten, program: "api", lead: thirdRequest, jobs: "3 queued", tasks: 3},

	{point: failpoint.NotificationsTaken, program: "worker", lead: notified, jobs: "3 queued", tasks: 1, sweep: true},
	{point: failpoint.TaskReceived, program: "worker", lead: threeTasks, jobs: "3 queued", tasks: 3},
	{point: failpoint.ApplySent, program: "worker", lead: commitAlone, jobs: "1 succeeded, 2 queued", tasks: 3},
	{point: failpoint.ApplySent, pass: 2, program: "worker", lead: halfBatch, jobs: "2 succeeded, 3 queued", tasks: 1, sweep: true},
	{point: failpoint.ApplySent, program: "worker", lead: heldNeighbour, jobs: "3 succeeded, 2 queued", tasks: 1, sweep: true},
	{point: failpoint.ApplySynced, program: "worker", lead: threeTasks, jobs: "1 succeeded, 2 queued", tasks: 3},
	{point: failpoint.ApplySynced, pass: 2, program: "worker", lead: oneTask(5), jobs: "5 succeeded", tasks: 1},
	{point: failpoint.ApplySynced, pass: 9, program: "worker", lead: resultsInPart, jobs: "10 succeeded, 10 queued", tasks: 1, sweep: true},
	{point: failpoint.ApplyUnflushed, program: "worker", lead: lastRefused, jobs: "3 succeeded, 2 queued", tasks: 1, sweep: true},
	{point: failpoint.ApplyCommitted, program: "worker", lead: threeTasks, jobs: "1 succeeded, 2 queued", tasks: 3},
	{point: failpoint.ApplyCommitted, pass: 2, program: "worker", lead: oneTask(5), jobs: "5 succeeded", tasks: 1},

	{point: failpoint.AttemptLocked, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tasks: 3},
	{point: failpoint.AttemptCounted, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tasks: 3},
	{point: failpoint.AttemptMade, program: "worker", lead: refused(3), jobs: "1 queued after 3 attempts, 2 queued", tasks: 3},
	{point: failpoint.AttemptMade, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tasks: 3},
	{point: failpoint.AttemptFailed, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tasks: 3},
	{point: failpoint.AttemptCommitted, program: "worker", lead: refused(3), jobs: "1 queued after 4 attempts, 2 queued", tasks: 3},
	{point: failpoint.AttemptCommitted, program: "worker", lead: refused(4), jobs: "1 failed after 5 attempts, 2 queued", tasks: 3},

	{point: failpoint.TaskHandled, program: "worker", lead: threeTasks, jobs: "1 succeeded, 2 queued", tasks: 3},
	{point: failpoint.RemainingUnwritten, program: "worker", lead: oneTask(taskJobs + 2), jobs: "64 succeeded, 2 queued", tasks: 1, sweep: true},
	{point: failpoint.RemainingUnwritten, program: "worker", lead: sharedTask(taskJobs + 3), jobs: "62 succeeded, 5 queued, 2 succeeded", tasks: 1, sweep: true},
	{point: failpoint.RemainingWritten, program: "worker", lead: oneTask(taskJobs + 2), jobs: "64 succeeded, 2 queued", tasks: 2},
	{point: failpoint.RemainingWritten, program: "worker", lead: sharedTask(taskJobs + 3), jobs: "62 succeeded, 5 queued, 2 succeeded", tasks: 2},
	{point: failpoint.SweepTaskUnwritten, program: "worker", lead: noTask, jobs: "3 queued", sweep: true},
	{point: failpoint.SweepTaskWritten, program: "worker", lead: noTask, jobs: "3 queued", tasks: 1, sweep: true},
	{point: failpoint.DirectUnapplied, program: "worker", lead: refusedTasks, jobs: "3 queued", sweep: true},
	{point: failpoint.DirectApplied, program: "worker", lead: refusedTasks, jobs: "3 succeeded"},
}

// A process dies between two steps, and others finish its work: each key names one job,
// and each job ends once, in order, as if a single thread had applied it.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	for _, row := range crashes {
		t.Run(row.at(), func(t *testing.T) {
			t.Parallel()
			sc := newCrashEnvironment(t, row)
			row.lead(sc)
			sc.left(row.jobs, row.tasks)
			sc.sendAgain()
			sc.openGate()
			if !row.sweep {
				sc.followUp()
			}
			sc.workers = append(sc.workers, startVariant(t, armed, "worker", sc.env()))
			sc.drained()
			if row.sweep {
				sc.followUp()
				sc.drained()
			}
			sc.check()
		})
	}
}

// at is the row's point as the environment names it.
func (r crashRow) at() string {
	return fmt.Sprintf("%s#%d", r.point, max(r.pass, 1))
}

func TestEveryCrashPointHasARow(t *testing.T) {
	t.Parallel()
	for _, point := range failpoint.Points {
		_, isOperators := operatorCrashes[point]
		if !isOperators && !slices.ContainsFunc(crashes, func(row crashRow) bool { return row.point == point }) {
			t.Errorf("nothing dies at %s", point)
		}
	}
}

// A build without the tag contains neither the variable nor the points.
func TestCrashPointsAreNotInProductionBuilds(t *testing.T) {
	t.Parallel()
	names := []string{failpoint.Variable}
	for _, point := range failpoint.Points {
		names = append(names, string(point))
	}
	for _, test := range []struct {
		name string
		variant
		want bool
	}{
		{"Production", plain, false},
		{"Armed", armed, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, err := test.build()
			if err != nil {
				t.Fatal(err)
			}
			for _, program := range []string{"api", "worker"} {
				binary, err := os.ReadFile(filepath.Join(dir, program))
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range names {
					if got := bytes.Contains(binary, []byte(name)); got != test.want {
						t.Errorf("%s contains %q: %t, want %t", program, name, got, test.want)
					}
				}
			}
		})
	}
}

// The functions that bring a process to its point. Each returns when the process is dead.

// thirdRequest is for an API: two requests are queued and have tasks, and the API dies during
// the third.
func thirdRequest(sc *crashEnvironment) {
	sc.sendRequests(2)
	dying := sc.arm()
	sc.sendUnanswered(dying)
	sc.died(dying)
}

// batchOfThree is for an API: one request is queued and has a task, and the API dies during a
// batch of three jobs. The batch is there as a whole or not at all.
func batchOfThree(sc *crashEnvironment) {
	sc.sendRequests(1)
	dying := sc.arm()
	sc.sendUnansweredBatch(dying)
	sc.died(dying)
}

// opening is for an API: a client opens an account. Then left accounts exist, and the
// same key opens one account or returns it.
func opening(left int) func(*crashEnvironment) {
	return func(sc *crashEnvironment) {
		dying := sc.arm()
		if answer, err := sc.open("http://" + dying.addr); err == nil {
			sc.t.Errorf("an opening was answered with %s by an API that died before", answer)
		}
		sc.died(dying)
		there := sc.numbersOpened()
		if len(there) != left {
			sc.t.Errorf("the opening left %v, want %d accounts", there, left)
		}
		var again string
		testenv.Eventually(sc.t, "Postgres to give up the dead opening's lock of the key", func() bool {
			var err error
			again, err = sc.open(sc.api(0)) // refused until then
			return err == nil
		})
		if opened := sc.numbersOpened(); len(opened) != 1 || opened[0] != again || left == 1 && there[0] != again {
			sc.t.Errorf("the key opened %v, and %v before it was sent again; the response is %s", opened, there, again)
		}
		sc.number, sc.balance = again, openingDeposit
	}
}

// threeTasks is for a worker: three requests are queued, each with a task, as sweeps
// enqueue them.
func threeTasks(sc *crashEnvironment) {
	sc.sendRequests(3)
	sc.enqueueEach()
	sc.died(sc.arm())
}

// notified is for a worker: three requests are queued, the first with a task, the others
// with notifications that came while the task was pending.
func notified(sc *crashEnvironment) {
	sc.sendRequests(3)
	sc.died(sc.arm())
}

// oneTask is for a worker: n requests are queued, with one task for the last, as the sweep
// enqueues it.
func oneTask(n int) func(*crashEnvironment) {
	return func(sc *crashEnvironment) {
		sc.sendRequests(n)
		flushAll(sc.t, sc.system)
		sc.enqueueLast()
		sc.died(sc.arm())
	}
}

// sharedTask is for a worker: n requests of the account and one request of each of two
// neighbours are queued, with one task for the three accounts.
func sharedTask(n int) func(*crashEnvironment) {
	return func(sc *crashEnvironment) {
		sc.sendRequests(n)
		sc.sendNeighbour()
		sc.sendNeighbour()
		flushAll(sc.t, sc.system)
		sc.enqueueShared()
		sc.died(sc.arm())
	}
}

// lastRefused is for a worker: of the accounts that share a task, Postgres refuses the
// neighbours' jobs, so no transaction of the batch has flushed for the first account.
func lastRefused(sc *crashEnvironment) {
	sc.exec(fmt.Sprintf(`ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> %d)`, neighbourly))
	sharedTask(3)(sc)
	sc.exec(`ALTER TABLE transactions DROP CONSTRAINT unlucky`)
}

// heldNeighbour is for a worker: it has sent the batch of the accounts that share a task.
// Postgres has committed the first account's and is held at the second.
func heldNeighbour(sc *crashEnvironment) {
	sc.closeGate(fmt.Sprintf(`BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.amount = %d)`, neighbourly))
	sharedTask(3)(sc)
	sc.held(1)
}

// noTask is for a worker: three requests are queued, and Redis has no task for them.
func noTask(sc *crashEnvironment) {
	sc.sendRequests(3)
	flushAll(sc.t, sc.system)
	sc.died(sc.arm())
}

// refusedTasks is for a worker: three requests are queued, and Redis refuses every task of
// their account from then on.
func refusedTasks(sc *crashEnvironment) {
	sc.sendRequests(3)
	flushAll(sc.t, sc.system)
	sc.withRedis(func(r *redis.Client) error {
		pending := "asynq:{" + queues.Name(sc.partition(sc.number)) + "}:pending"
		return r.Set(sc.t.Context(), pending, "of a wrong type", 0).Err()
	})
	sc.died(sc.arm())
}

// commitAlone is for a worker: it has sent an apply, which waits inside Postgres. Postgres
// commits it after the worker has died.
func commitAlone(sc *crashEnvironment) {
	sc.sendRequests(3)
	sc.enqueueEach()
	sc.closeGate(lockHeld)
	sc.died(sc.arm())
	sc.held(1)
	sc.left("3 queued", 3)
	sc.openGate()
	sc.becomes("1 succeeded, 2 queued")
}

// halfBatch is for a worker: of five requests it applies the first alone and the others in
// one batch, of which Postgres has committed the first and is held at the second.
func halfBatch(sc *crashEnvironment) {
	sc.closeGate(`BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.seq = 4)`)
	oneTask(5)(sc)
	sc.held(1)
}

// resultsInPart is for a worker: of the batch behind the first of twenty requests it has
// received eight results, and Postgres is held at the tenth.
func resultsInPart(sc *crashEnvironment) {
	sc.closeGate(`BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.seq = 12)`)
	oneTask(20)(sc)
	sc.held(1)
}

// refused is for a worker: three requests are queued. Postgres refuses the first, and has
// refused the given number of attempts.
func refused(attempts int) func(*crashEnvironment) {
	return func(sc *crashEnvironment) {
		sc.refuse = 13
		sc.exec(fmt.Sprintf(`ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> %d)`, sc.refuse))
		sc.send("deposits", sc.refuse)
		sc.awaitTasks(1)
		sc.exec(fmt.Sprintf(`UPDATE queue SET attempts = %d`, attempts))
		sc.sendRequests(2)
		sc.enqueueEach()
		sc.died(sc.arm())
	}
}

// arm starts the row's program, armed to die at the row's point.
func (sc *crashEnvironment) arm() *process {
	sc.t.Helper()
	env := append(sc.env(), failpoint.Variable+"="+sc.row.at())
	if sc.row.program == "api" { // reaches no point before a request
		return startVariant(sc.t, armed, "api", env)
	}
	return beginVariant(sc.t, armed, "worker", env)
}

// died waits until the process has killed itself at the row's point.
func (sc *crashEnvironment) died(dying *process) {
	sc.t.Helper()
	err := dying.wait()
	exit, exited := errors.AsType[*exec.ExitError](err)
	if !exited || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL ||
		!bytes.Contains([]byte(dying.log()), []byte(sc.row.point.KillMessage()+"\n")) {
		sc.t.Fatalf("%s ended with %v, not by SIGKILL at %s\n%s", dying.name, err, sc.row.at(), dying.log())
	}
}
