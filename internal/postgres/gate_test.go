package postgres_test

import (
	"context"
	"errors"
	"math"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestWiden(t *testing.T) {
	t.Parallel()
	const round = 1 << 32
	for name, tt := range map[string]struct {
		xmin uint32
		next uint64
		want uint64
	}{
		"Invalid":         {0, 1000, 0},
		"Bootstrap":       {1, 1000, 0},
		"Frozen":          {2, 5*round + 1000, 0},
		"First":           {3, 4, 3},
		"Newest":          {999, 1000, 999},
		"Old":             {3, 1000, 3},
		"HalfARoundOld":   {10, 1<<31 + 11, 10},
		"MoreThanHalf":    {10, 1<<31 + 5000, 10},
		"AfterARound":     {10, round + 20, round + 10},
		"BeforeARound":    {math.MaxUint32, round + 20, round - 1},
		"AlmostARoundOld": {21, 7*round + 20, 6*round + 21},
		"NextIsARound":    {math.MaxUint32, 3 * round, 3*round - 1},
		"ARoundOldFrozen": {20, 7*round + 21, 7*round + 20}, // if it is older, it counts as younger
		"NotVisible":      {1000, 1000, math.MaxUint64},
	} {
		if got := postgres.Widen(tt.xmin, tt.next); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

// A row's transaction never counts as older than it is. Its id is exact unless it is older than
// the 2^32 ids that the row's 32 bits distinguish.
func TestWiden_Model(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const most = 1 << 40
		xid := rapid.Uint64Range(3, most).Draw(t, "xid")
		age := rapid.OneOf(rapid.Uint64Range(1, 10), rapid.Uint64Range(1<<31-3, 1<<31+3), rapid.Uint64Range(1<<32-3, 1<<32+3), rapid.Uint64Range(1, 1<<34)).Draw(t, "age")
		next := xid + age
		got := postgres.Widen(uint32(xid), next)
		switch {
		case uint32(xid) < 3:
			t.Skip("no transaction has this id")
		case got < xid, got >= next, (got-xid)%(1<<32) != 0, age <= 1<<32 && got != xid:
			t.Fatalf("%d, seen when %d was next, is taken for %d", xid, next, got)
		}
	})
}

// gated is a server of the test's own, a table on it, and a gate that runs.
type gated struct {
	t     *testing.T
	url   string
	pool  *pgxpool.Pool
	gate  *postgres.Gate
	count func() int // of confirmations
}

func newGated(t *testing.T, url string) gated {
	t.Helper()
	registry := prometheus.NewRegistry()
	g := gated{t: t, url: url, pool: open(t, url)}
	g.gate = postgres.NewGate(registry, g.pool)
	g.gate.SetTimeout(time.Minute) // a test that waits for a standby must not time out
	g.count = func() int {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "passbook_confirmations_total" {
				return int(family.GetMetric()[0].GetCounter().GetValue())
			}
		}
		t.Fatal("nothing counts confirmations")
		return 0
	}
	ctx, stop := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return g.gate.Run(ctx) })
	t.Cleanup(func() {
		stop()
		_ = running.Wait()
	})
	g.exec(g.pool, `CREATE TABLE facts (name text)`)
	return g
}

// checkpointer is a process that a crash replaces; 0 while the server can't be asked.
func (g gated) checkpointer() (pid int) {
	conn, err := pgx.Connect(g.t.Context(), g.url)
	if err != nil {
		return 0
	}
	defer conn.Close(g.t.Context()) //nolint:errcheck // it has been asked
	_ = conn.QueryRow(g.t.Context(), `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`).Scan(&pid)
	return pid
}

type executor interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (g gated) exec(db executor, sql string, args ...any) {
	g.t.Helper()
	rows, err := db.Query(g.t.Context(), sql, args...)
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	if err != nil {
		g.t.Fatalf("%s: %v", sql, err)
	}
}

// begin is a transaction that commits without a flush.
func (g gated) begin() pgx.Tx {
	g.t.Helper()
	tx, err := g.pool.Begin(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	g.exec(tx, `SET LOCAL synchronous_commit = off`)
	return tx
}

// write commits a fact without a flush.
func (g gated) write(name string) {
	g.t.Helper()
	tx := g.begin()
	g.exec(tx, `INSERT INTO facts VALUES ($1)`, name)
	g.commit(tx)
}

func (g gated) commit(tx pgx.Tx) {
	g.t.Helper()
	if err := tx.Commit(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
}

// read is a request that reads a fact.
func (g gated) read(name string) *postgres.Shown {
	g.t.Helper()
	ctx, shown := g.gate.Watch(g.t.Context())
	g.readIn(ctx, name)
	return shown
}

func (g gated) readIn(ctx context.Context, name string) {
	g.t.Helper()
	rows, _ := g.pool.Query(ctx, `SELECT name, xmin, `+postgres.ShownSQL+` FROM facts WHERE name = $1`, name) // CollectExactlyOneRow returns its error
	if got, err := pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, pgx.RowTo[string])); err != nil || got != name {
		g.t.Fatalf("read %q, %v; want %q", got, err, name)
	}
}

func (g gated) passes(what string, shown *postgres.Shown) {
	g.t.Helper()
	if err := g.gate.Wait(g.t.Context(), shown); err != nil {
		g.t.Errorf("%s: %v", what, err)
	}
}

// stays fails the test where the gate lets an answer pass that can't be durable.
func (g gated) stays(what string, shown *postgres.Shown) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := g.gate.Wait(ctx, shown); !errors.Is(err, context.DeadlineExceeded) {
		g.t.Errorf("%s: %v, want it to wait", what, err)
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	g := newGated(t, testenv.EmptyPostgresServer(t).URL())
	g.write("old")
	g.passes("a fact", g.read("old"))
	back := testenv.AwayStandby(t, g.url)

	g.passes("what is confirmed", g.read("old"))
	g.write("new")
	g.stays("what is not durable", g.read("new"))
	ctx, shown := g.gate.Watch(t.Context())
	g.readIn(ctx, "new")
	g.readIn(ctx, "old")
	g.stays("two reads, one of what is not durable", shown)
	_, shown = g.gate.Watch(t.Context())
	g.stays("a request that has reported nothing", shown)
	ctx, shown = g.gate.Watch(t.Context())
	postgres.ShowNone(ctx)
	g.passes("a request that shows nothing", shown)
	postgres.ShowAll(ctx)
	g.stays("a request that shows all", shown)

	back()
	g.passes("what the standby has", g.read("new"))
	defer testenv.AwayStandby(t, g.url)()
	g.passes("what is confirmed since", g.read("new"))
}

// Reads of what is old write nothing to the log.
func TestGate_OldCostsNothing(t *testing.T) {
	t.Parallel()
	g := newGated(t, testenv.EmptyPostgresServer(t).URL())
	g.write("old")
	g.passes("a fact", g.read("old"))
	position := func() (lsn string) {
		if err := g.pool.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	confirmed := g.count()
	testenv.Eventually(t, "a hundred reads without a record in the log", func() bool { // the server writes some by itself
		before := position()
		for range 100 {
			g.passes("an old fact", g.read("old"))
		}
		return position() == before
	})
	if more := g.count() - confirmed; more != 0 {
		t.Errorf("%d confirmations of what is old", more)
	}
}

// Concurrent reads share a confirmation: each waits for the current one at most, and for the
// next.
func TestGate_IsShared(t *testing.T) {
	t.Parallel()
	g := newGated(t, testenv.EmptyPostgresServer(t).URL())
	g.write("old")
	g.passes("a fact", g.read("old"))
	confirmed := g.count()
	back := testenv.AwayStandby(t, g.url)
	g.write("new")
	var readers errgroup.Group
	for range 50 {
		shown := g.read("new")
		readers.Go(func() error { return g.gate.Wait(t.Context(), shown) })
	}
	back()
	if err := readers.Wait(); err != nil {
		t.Fatal(err)
	}
	if more := g.count() - confirmed; more < 1 || more > 2 {
		t.Errorf("%d confirmations for 50 reads of one fact, want 1 or 2", more)
	}
}

// A confirmation does not cover the transactions that were running when it began, nor their
// subtransactions, whose ids no snapshot lists.
func TestGate_UnderWay(t *testing.T) {
	t.Parallel()
	g := newGated(t, testenv.EmptyPostgresServer(t).URL())
	tx := g.begin()
	g.exec(tx, `INSERT INTO facts VALUES ('top')`)
	g.exec(tx, `SAVEPOINT below`)
	g.exec(tx, `INSERT INTO facts VALUES ('below')`)
	g.write("later")
	g.passes("what has ended", g.read("later"))
	defer testenv.AwayStandby(t, g.url)()
	g.commit(tx)
	g.stays("what was under way", g.read("top"))
	g.stays("what its subtransaction wrote", g.read("below"))
}

// A confirmation does not cover transactions that end while it waits.
func TestGate_EndsMeanwhile(t *testing.T) {
	t.Parallel()
	g := newGated(t, testenv.EmptyPostgresServer(t).URL())
	g.write("first")
	g.passes("a fact", g.read("first"))
	back := testenv.AwayStandby(t, g.url)
	g.write("second")
	shown := g.read("second")
	var reader errgroup.Group
	reader.Go(func() error { return g.gate.Wait(t.Context(), shown) })
	testenv.Eventually(t, "a confirmation that waits", func() (waits bool) {
		const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`
		if err := g.pool.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	g.write("meanwhile")
	back()
	if err := reader.Wait(); err != nil {
		t.Fatal(err)
	}
	defer testenv.AwayStandby(t, g.url)()
	g.passes("what had ended before", g.read("second"))
	g.stays("what has ended meanwhile", g.read("meanwhile"))
}

// A read before a crash is never confirmed after it: the row may be lost, and another transaction
// may have its transaction's id.
func TestGate_Crash(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	for name, crash := range map[string]func(g gated){
		"OfOneProcess": func(g gated) { // the postmaster stays, and starts all others anew
			var pid int
			if err := g.pool.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"OfAll": func(gated) {
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := server.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGated(t, server.URL())
			defer g.exec(g.pool, `DROP TABLE facts`)
			g.write("old")
			g.passes("a fact", g.read("old"))
			g.write("new")
			newest := g.read("new")
			ctx, torn := g.gate.Watch(t.Context())
			g.readIn(ctx, "new")
			_, unreported := g.gate.Watch(t.Context())
			before := g.checkpointer()
			if before == 0 {
				t.Fatal("the server has no checkpointer")
			}
			crash(g)
			// Until the postmaster notices the death of one process, the others confirm, and rightly.
			testenv.Eventually(t, "the server to start anew", func() bool { now := g.checkpointer(); return now != 0 && now != before })
			testenv.Eventually(t, "the server to be back", func() bool { return g.pool.Ping(t.Context()) == nil })
			for what, shown := range map[string]*postgres.Shown{"a fact": newest, "a request that reported nothing": unreported} {
				testenv.Eventually(t, "the gate to know of the crash", func() bool { // connections of before may be met first
					err := g.gate.Wait(t.Context(), shown)
					if err == nil {
						t.Fatalf("%s, read before the crash, was confirmed after it", what)
					}
					return errors.Is(err, postgres.ErrUnconfirmed)
				})
			}
			g.readIn(ctx, "old")
			if err := g.gate.Wait(t.Context(), torn); !errors.Is(err, postgres.ErrUnconfirmed) {
				t.Errorf("a request that read before the crash and after it: %v, want %v", err, postgres.ErrUnconfirmed)
			}
			g.write("again")
			g.passes("what is read after the crash", g.read("again"))
			if err := g.gate.Wait(t.Context(), newest); !errors.Is(err, postgres.ErrUnconfirmed) {
				t.Errorf("a fact of before the crash, by the horizon of after it: %v, want %v", err, postgres.ErrUnconfirmed)
			}
		})
	}
}
