package e2e_test

import (
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// strikeRow says at which step inside Postgres a statement is held, and what
// strikes then.
type strikeRow struct {
	name      string
	gate      string
	strike    func(*crashScene, *process)
	ownServer bool // it is Postgres that dies
}

// An API's insert is struck between its writes and its commit. The client does
// not hear what became of it and asks again, also while it is still held: the
// key makes one job.
func TestStruckInsideAnAccept(t *testing.T) {
	t.Parallel()
	for _, row := range []strikeRow{
		{"APIKilled", insertDone, killed, false},
		{"BackendTerminated", insertDone, terminated, false},
		{"PostgresCrashes", insertDone, postgresCrashed, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sc := newStruckScene(t, row)
			sc.sendOrders(2)
			sc.closeGate(row.gate)
			struck := startVariant(t, armed, "api", sc.env())
			sc.mu.Lock()
			sc.apis = append(sc.apis, struck)
			sc.mu.Unlock()
			o := sc.next("deposits", 31)
			var asking errgroup.Group
			asking.Go(func() (err error) {
				o.job, err = sc.c.settle(1, o.order) // that one first, then in turn
				return err
			})
			sc.held(1)
			row.strike(sc, struck)
			sc.openGate()
			if err := asking.Wait(); err != nil {
				t.Fatal(err)
			}
			sc.followUp()
			sc.workers = append(sc.workers, startVariant(t, armed, "worker", sc.env()))
			sc.drained()
			sc.check()
		})
	}
}

// A worker's apply is struck when the account is locked and nothing written, or
// all written and nothing committed.
func TestStruckInsideAnApply(t *testing.T) {
	t.Parallel()
	for _, row := range []strikeRow{
		{"LockedWorkerKilled", lockHeld, killed, false},
		{"LockedBackendTerminated", lockHeld, terminated, false},
		{"WrittenWorkerKilled", applyDone, killed, false},
		{"WrittenBackendTerminated", applyDone, terminated, false},
		{"WrittenPostgresCrashes", applyDone, postgresCrashed, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sc := newStruckScene(t, row)
			sc.sendOrders(3)
			sc.closeGate(row.gate)
			struck := startVariant(t, armed, "worker", sc.env())
			sc.held(1)
			row.strike(sc, struck)
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

func newStruckScene(t *testing.T, row strikeRow) *crashScene {
	t.Helper()
	if !row.ownServer {
		return newCrashScene(t, crashRow{})
	}
	return setCrashScene(t, &system{t: t, postgres: testenv.PostgresServer(t)}, crashRow{})
}

// killed kills the process and has somebody else want the same, while Postgres
// still holds what the dead one sent: the client asks again at another API,
// another worker takes the next ticket.
func killed(sc *crashScene, struck *process) {
	sc.t.Helper()
	struck.kill()
	if struck.name == "worker" {
		sc.workers = append(sc.workers, startVariant(sc.t, armed, "worker", sc.env()))
	}
	sc.held(2)
}

// terminated ends the backend; the process lives and must mend it.
func terminated(sc *crashScene, _ *process) {
	sc.t.Helper()
	sc.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`)
}

func postgresCrashed(sc *crashScene, _ *process) {
	sc.t.Helper()
	crashPostgres(sc.t, sc.system)
}
