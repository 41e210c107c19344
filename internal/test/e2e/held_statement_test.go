package e2e_test

import (
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// heldRow says at which step inside Postgres a statement is held, and which fault is
// injected then.
type heldRow struct {
	name      string
	gate      string
	inject    func(*crashEnvironment, *process)
	ownServer bool // it is Postgres that dies
}

// A fault is injected while an API's insert is held between its writes and its commit. The
// client gets no answer and sends the request again, also while the insert is still held:
// the key makes one job.
func TestFaultInsideAnAccept(t *testing.T) {
	t.Parallel()
	for _, row := range []heldRow{
		{"APIKilled", insertDone, killed, false},
		{"BackendTerminated", insertDone, terminated, false},
		{"PostgresCrashes", insertDone, postgresCrashed, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sc := newHeldEnvironment(t, row)
			sc.sendRequests(2)
			sc.closeGate(row.gate)
			faulty := startVariant(t, armed, "api", sc.env())
			sc.mu.Lock()
			sc.apis = append(sc.apis, faulty)
			sc.mu.Unlock()
			req := sc.next("deposits", 31)
			var sending errgroup.Group
			sending.Go(func() (err error) {
				req.job, err = sc.c.settle(1, req.jobRequest) // the faulty API first, then each in turn
				return err
			})
			sc.held(1)
			row.inject(sc, faulty)
			sc.openGate()
			if err := sending.Wait(); err != nil {
				t.Fatal(err)
			}
			sc.followUp()
			sc.workers = append(sc.workers, startVariant(t, armed, "worker", sc.env()))
			sc.drained()
			sc.check()
		})
	}
}

// A fault is injected while a worker's apply is held: the account is locked and nothing
// written, or everything is written and nothing committed.
func TestFaultInsideAnApply(t *testing.T) {
	t.Parallel()
	for _, row := range []heldRow{
		{"LockedWorkerKilled", lockHeld, killed, false},
		{"LockedBackendTerminated", lockHeld, terminated, false},
		{"WrittenWorkerKilled", applyDone, killed, false},
		{"WrittenBackendTerminated", applyDone, terminated, false},
		{"WrittenPostgresCrashes", applyDone, postgresCrashed, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sc := newHeldEnvironment(t, row)
			sc.sendRequests(3)
			sc.closeGate(row.gate)
			faulty := startVariant(t, armed, "worker", sc.env())
			sc.held(1)
			row.inject(sc, faulty)
			if got := sc.jobs(); !row.ownServer && got != "3 queued" { // with the server the gate is gone
				t.Errorf("%s while the first is held, want 3 queued", got)
			}
			sc.openGate()
			sc.followUp()
			sc.drained()
			sc.check()
		})
	}
}

func newHeldEnvironment(t *testing.T, row heldRow) *crashEnvironment {
	t.Helper()
	if !row.ownServer {
		return newCrashEnvironment(t, crashRow{})
	}
	return setUpCrash(t, &system{t: t, postgres: testenv.PostgresServer(t)}, crashRow{})
}

// killed kills the process while Postgres still holds its statement. Another process
// waits for the same rows: the client sends its request to another API, or another
// worker receives the next task.
func killed(sc *crashEnvironment, faulty *process) {
	sc.t.Helper()
	faulty.kill()
	if faulty.name == "worker" {
		sc.workers = append(sc.workers, startVariant(sc.t, armed, "worker", sc.env()))
	}
	sc.held(2)
}

// terminated ends the backend; the process lives and must recover.
func terminated(sc *crashEnvironment, _ *process) {
	sc.t.Helper()
	sc.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`)
}

func postgresCrashed(sc *crashEnvironment, _ *process) {
	sc.t.Helper()
	crashPostgres(sc.t, sc.system)
}
