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

// armed is the build whose programs can be told where to die. All of a scene are
// of it, told or not.
var armed = variant{flags: []string{"-tags=failpoints"}, plain: true}

// unsaid stands where the number of tickets may be one or the other.
const unsaid = -1

// crashRow says where a process dies and what must be there when it has: before
// anybody else has done anything.
type crashRow struct {
	point   failpoint.Point
	pass    int               // which passing of it kills; 0 is the first
	program string            // the one that dies
	lead    func(*crashScene) // up to its death
	jobs    string            // in Postgres, in the order of their accepts
	tickets int               // in Redis, those in dead hands too
	sweep   bool              // nobody but the sweep is going to ring
}

// turn is how many jobs a ticket may apply.
const turn = 64

var crashes = []crashRow{
	{point: failpoint.OpenUncommitted, program: "api", lead: opening(0), jobs: "none"},
	{point: failpoint.OpenCommitted, program: "api", lead: opening(1), jobs: "none"},

	{point: failpoint.AcceptCollected, program: "api", lead: thirdOrder, jobs: "2 queued", tickets: 2},
	{point: failpoint.AcceptCommitted, program: "api", lead: thirdOrder, jobs: "3 queued", tickets: 2, sweep: true},
	{point: failpoint.AcceptNotified, program: "api", lead: thirdOrder, jobs: "3 queued", tickets: unsaid, sweep: true},
	{point: failpoint.ResponseUnwritten, program: "api", lead: thirdOrder, jobs: "3 queued", tickets: unsaid, sweep: true},
	{point: failpoint.NotificationsCollected, program: "api", lead: thirdOrder, jobs: "3 queued", tickets: 2, sweep: true},
	{point: failpoint.NotificationsWritten, program: "api", lead: thirdOrder, jobs: "3 queued", tickets: 3},

	{point: failpoint.NotificationsTaken, program: "worker", lead: notified, jobs: "3 queued", tickets: 1, sweep: true},
	{point: failpoint.TaskReceived, program: "worker", lead: threeTickets, jobs: "3 queued", tickets: 3},
	{point: failpoint.ApplySent, program: "worker", lead: commitAlone, jobs: "1 succeeded, 2 queued", tickets: 3},
	{point: failpoint.ApplySent, pass: 2, program: "worker", lead: halfBatch, jobs: "2 succeeded, 3 queued", tickets: 1, sweep: true},
	{point: failpoint.ApplySent, program: "worker", lead: heldNeighbour, jobs: "3 succeeded, 2 queued", tickets: 1, sweep: true},
	{point: failpoint.ApplySynced, program: "worker", lead: threeTickets, jobs: "1 succeeded, 2 queued", tickets: 3},
	{point: failpoint.ApplySynced, pass: 2, program: "worker", lead: oneTicket(5), jobs: "5 succeeded", tickets: 1},
	{point: failpoint.ApplySynced, pass: 9, program: "worker", lead: heardInPart, jobs: "10 succeeded, 10 queued", tickets: 1, sweep: true},
	{point: failpoint.ApplyUnflushed, program: "worker", lead: lastRefused, jobs: "3 succeeded, 2 queued", tickets: 1, sweep: true},
	{point: failpoint.ApplyCommitted, program: "worker", lead: threeTickets, jobs: "1 succeeded, 2 queued", tickets: 3},
	{point: failpoint.ApplyCommitted, pass: 2, program: "worker", lead: oneTicket(5), jobs: "5 succeeded", tickets: 1},

	{point: failpoint.AttemptLocked, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tickets: 3},
	{point: failpoint.AttemptCounted, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tickets: 3},
	{point: failpoint.AttemptMade, program: "worker", lead: refused(3), jobs: "1 queued after 3 attempts, 2 queued", tickets: 3},
	{point: failpoint.AttemptMade, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tickets: 3},
	{point: failpoint.AttemptFailed, program: "worker", lead: refused(4), jobs: "1 queued after 4 attempts, 2 queued", tickets: 3},
	{point: failpoint.AttemptCommitted, program: "worker", lead: refused(3), jobs: "1 queued after 4 attempts, 2 queued", tickets: 3},
	{point: failpoint.AttemptCommitted, program: "worker", lead: refused(4), jobs: "1 failed after 5 attempts, 2 queued", tickets: 3},

	{point: failpoint.TaskHandled, program: "worker", lead: threeTickets, jobs: "1 succeeded, 2 queued", tickets: 3},
	{point: failpoint.RemainingUnwritten, program: "worker", lead: oneTicket(turn + 2), jobs: "64 succeeded, 2 queued", tickets: 1, sweep: true},
	{point: failpoint.RemainingUnwritten, program: "worker", lead: sharedTicket(turn + 3), jobs: "62 succeeded, 5 queued, 2 succeeded", tickets: 1, sweep: true},
	{point: failpoint.RemainingWritten, program: "worker", lead: oneTicket(turn + 2), jobs: "64 succeeded, 2 queued", tickets: 2},
	{point: failpoint.RemainingWritten, program: "worker", lead: sharedTicket(turn + 3), jobs: "62 succeeded, 5 queued, 2 succeeded", tickets: 2},
	{point: failpoint.SweepTaskUnwritten, program: "worker", lead: noTicket, jobs: "3 queued", sweep: true},
	{point: failpoint.SweepTaskWritten, program: "worker", lead: noTicket, jobs: "3 queued", tickets: 1, sweep: true},
	{point: failpoint.DirectUnapplied, program: "worker", lead: refusedTasks, jobs: "3 queued", sweep: true},
	{point: failpoint.DirectApplied, program: "worker", lead: refusedTasks, jobs: "3 succeeded"},
}

// A process dies between two steps. What it left is finished by others: each key
// names one job, each job ends once, in order, as a single thread makes it end.
func TestCrashPoints(t *testing.T) {
	for _, row := range crashes {
		t.Run(row.at(), func(t *testing.T) {
			t.Parallel()
			sc := newCrashScene(t, row)
			row.lead(sc)
			sc.left(row.jobs, row.tickets)
			sc.askAgain()
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
		if !slices.ContainsFunc(crashes, func(row crashRow) bool { return row.point == point }) {
			t.Errorf("nothing dies at %s", point)
		}
	}
}

// A build without the tag has no name of it to arm, and no point.
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

// What it takes to lead a process to its point. Each returns when it is dead.

// thirdOrder is an API's: two orders are queued and rung for, the third is the
// one.
func thirdOrder(sc *crashScene) {
	sc.sendOrders(2)
	dying := sc.arm()
	sc.sendUnheard(dying)
	sc.died(dying)
}

// opening is an API's: a client opens an account. So many of it are there then,
// and the same key opens one, or is answered with it.
func opening(left int) func(*crashScene) {
	return func(sc *crashScene) {
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
			sc.t.Errorf("the key opened %v, and %v before it was asked again; answered %s", opened, there, again)
		}
		sc.number, sc.balance = again, openingDeposit
	}
}

// threeTickets is a worker's: three orders are queued, each with its ticket, as sweeps
// write them.
func threeTickets(sc *crashScene) {
	sc.sendOrders(3)
	sc.enqueueEach()
	sc.died(sc.arm())
}

// notified is a worker's: three orders are queued, the first with a task, the others
// notified of while that is pending.
func notified(sc *crashScene) {
	sc.sendOrders(3)
	sc.died(sc.arm())
}

// oneTicket is a worker's: n orders are queued, with one ticket for the last, as
// the sweep writes it.
func oneTicket(n int) func(*crashScene) {
	return func(sc *crashScene) {
		sc.sendOrders(n)
		flushAll(sc.t, sc.system)
		sc.enqueueLast()
		sc.died(sc.arm())
	}
}

// sharedTicket is a worker's: n orders of the account and one of each of two
// neighbours are queued, with one ticket for the three accounts.
func sharedTicket(n int) func(*crashScene) {
	return func(sc *crashScene) {
		sc.sendOrders(n)
		sc.sendNeighbour()
		sc.sendNeighbour()
		flushAll(sc.t, sc.system)
		sc.enqueueShared()
		sc.died(sc.arm())
	}
}

// lastRefused is a worker's: of the accounts that share a ticket the neighbours' jobs are
// refused, so that no transaction of the batch has flushed for the first account's.
func lastRefused(sc *crashScene) {
	sc.exec(fmt.Sprintf(`ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> %d)`, neighbourly))
	sharedTicket(3)(sc)
	sc.exec(`ALTER TABLE transactions DROP CONSTRAINT unlucky`)
}

// heldNeighbour is a worker's: it has sent for the accounts that share a ticket, and
// Postgres has committed the first one's and is held at the second.
func heldNeighbour(sc *crashScene) {
	sc.closeGate(fmt.Sprintf(`BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.amount = %d)`, neighbourly))
	sharedTicket(3)(sc)
	sc.held(1)
}

// noTicket is a worker's: three orders are queued, and Redis knows of none.
func noTicket(sc *crashScene) {
	sc.sendOrders(3)
	flushAll(sc.t, sc.system)
	sc.died(sc.arm())
}

// refusedTasks is a worker's: three orders are queued, and Redis takes no task of
// their account from then on.
func refusedTasks(sc *crashScene) {
	sc.sendOrders(3)
	flushAll(sc.t, sc.system)
	sc.withRedis(func(r *redis.Client) error {
		pending := "asynq:{" + queues.Name(sc.partition(sc.number)) + "}:pending"
		return r.Set(sc.t.Context(), pending, "of a wrong type", 0).Err()
	})
	sc.died(sc.arm())
}

// commitAlone is a worker's: it has sent an apply, which waits inside Postgres.
// When it is dead and the wait over, Postgres commits for nobody.
func commitAlone(sc *crashScene) {
	sc.sendOrders(3)
	sc.enqueueEach()
	sc.closeGate(lockHeld)
	sc.died(sc.arm())
	sc.held(1)
	sc.left("3 queued", 3)
	sc.openGate()
	sc.becomes("1 succeeded, 2 queued")
}

// halfBatch is a worker's: of five orders the first is applied by itself, the
// rest in one batch, of which Postgres has committed the first and is held at
// the second.
func halfBatch(sc *crashScene) {
	sc.closeGate(`BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.seq = 4)`)
	oneTicket(5)(sc)
	sc.held(1)
}

// heardInPart is a worker's: of the batch behind the first of twenty orders it has
// heard of eight, and Postgres is held at the tenth.
func heardInPart(sc *crashScene) {
	sc.closeGate(`BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.seq = 12)`)
	oneTicket(20)(sc)
	sc.held(1)
}

// refused is a worker's: three orders are queued, of which Postgres refuses the
// first, and has so many times.
func refused(attempts int) func(*crashScene) {
	return func(sc *crashScene) {
		sc.refuse = 13
		sc.exec(fmt.Sprintf(`ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> %d)`, sc.refuse))
		sc.send("deposits", sc.refuse)
		sc.ticketed(1)
		sc.exec(fmt.Sprintf(`UPDATE jobs SET attempts = %d`, attempts))
		sc.sendOrders(2)
		sc.enqueueEach()
		sc.died(sc.arm())
	}
}

// arm starts the row's program, told to die at the row's point.
func (sc *crashScene) arm() *process {
	sc.t.Helper()
	env := append(sc.env(), failpoint.Variable+"="+sc.row.at())
	if sc.row.program == "api" { // passes no point before it is asked
		return startVariant(sc.t, armed, "api", env)
	}
	return beginVariant(sc.t, armed, "worker", env)
}

// died waits for the process's death, by its own hand at the row's point.
func (sc *crashScene) died(dying *process) {
	sc.t.Helper()
	err := dying.wait()
	exit, exited := errors.AsType[*exec.ExitError](err)
	if !exited || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL ||
		!bytes.Contains([]byte(dying.log()), []byte(sc.row.point.KillMessage()+"\n")) {
		sc.t.Fatalf("%s ended with %v, not by SIGKILL at %s\n%s", dying.name, err, sc.row.at(), dying.log())
	}
}
