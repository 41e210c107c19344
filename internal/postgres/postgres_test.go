package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

func open(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 3, Application: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func setting(t testing.TB, pool *pgxpool.Pool, name string) (value string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// A database configured to commit before the disk has the data does not weaken a session.
func TestOpenDemandsDurability(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{"off": "on", "local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply"} {
		t.Run(given, func(t *testing.T) {
			t.Parallel()
			url := testenv.Postgres(t)
			admin := open(t, url)
			var database string
			if err := admin.QueryRow(t.Context(), `SELECT current_database()`).Scan(&database); err != nil {
				t.Fatal(err)
			}
			alter := fmt.Sprintf(`ALTER DATABASE %s SET synchronous_commit = %s`, pgx.Identifier{database}.Sanitize(), given)
			if _, err := admin.Exec(t.Context(), alter); err != nil {
				t.Fatal(err)
			}
			if got := setting(t, open(t, url), "synchronous_commit"); got != want {
				t.Errorf("synchronous_commit is %s, want %s", got, want)
			}
		})
	}
}

// Postgres notices within 20 s that a client's host has vanished.
func TestOpenSetsKeepalives(t *testing.T) {
	t.Parallel()
	pool := open(t, testenv.Postgres(t))
	for name, want := range map[string]string{"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"} {
		if got := setting(t, pool, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// A database configured for one snapshot a transaction does not change a session either.
func TestOpenReadsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	const alter = `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$`
	if _, err := open(t, url).Exec(t.Context(), alter); err != nil {
		t.Fatal(err)
	}
	if got := setting(t, open(t, url), "transaction_isolation"); got != "read committed" {
		t.Errorf("transaction_isolation is %s, want read committed", got)
	}
}

func TestOpenMaxConns(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	if got := open(t, url).Config().MaxConns; got != 3 {
		t.Errorf("%d connections, want the 3 that were asked for", got)
	}
	if got := open(t, url+"&pool_max_conns=7").Config().MaxConns; got != 7 {
		t.Errorf("%d connections, want the URL's 7", got)
	}
}

// Several pools of a process each have their part of its connections.
func TestOpenPart(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	half := func(total int32) int32 { return total / 2 }
	for address, want := range map[string]int32{url: 8, url + "&pool_max_conns=6&pool_min_conns=6": 3} {
		pool, err := postgres.Open(t.Context(), postgres.Config{URL: address, MaxConns: 16, Part: half})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		if got := pool.Config().MaxConns; got != want {
			t.Errorf("%d connections, want %d", got, want)
		}
	}
}

// An idle pool closes its connections.
func TestOpenClosesIdleConnections(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	if got := open(t, url).Config(); got.MaxConnIdleTime != time.Minute || got.HealthCheckPeriod > time.Minute/2 || got.MinConns != 0 {
		t.Errorf("connections are idle for %v, looked at every %v, and %d stay", got.MaxConnIdleTime, got.HealthCheckPeriod, got.MinConns)
	}
	pool := open(t, url+"&pool_max_conns=8&pool_max_conn_idle_time=50ms")
	var busy []*pgxpool.Conn
	for range 8 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		busy = append(busy, conn)
	}
	for _, conn := range busy {
		conn.Release()
	}
	testenv.Eventually(t, "the connections are closed", func() bool { return pool.Stat().TotalConns() == 0 })
}

// Connections that opened together are not all replaced at once.
func TestOpenSpreadsRenewals(t *testing.T) {
	t.Parallel()
	if config := open(t, testenv.Postgres(t)).Config(); config.MaxConnLifetimeJitter < config.MaxConnLifetime/4 {
		t.Errorf("renewed within %v of each other", config.MaxConnLifetimeJitter)
	}
}

// A pool closes a connection whose server takes no writes any more, as when its operators fence
// it off for a failover. The next connection goes to the server that does.
func TestOpenClosesConnectionsOfAStandby(t *testing.T) {
	t.Parallel()
	pool := open(t, testenv.Postgres(t)+"&pool_max_conns=1")
	if _, err := pool.Exec(t.Context(), `SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}
	const write = `CREATE TABLE written (id int)`
	if _, err := pool.Exec(t.Context(), write); !postgres.IsDown(err) {
		t.Errorf("a write where none is taken: %v", err)
	}
	if _, err := pool.Exec(t.Context(), write); err != nil {
		t.Errorf("the next one went to the same server: %v", err)
	}
}

// A connection that swallows everything soon frees its slot in the pool, also where the server
// does not answer the cancel request.
func TestAbandonSoon(t *testing.T) {
	t.Parallel()
	const soon = 5 * time.Second // pgx alone takes 15
	for name, freeze := range map[string]string{
		"FrozenBackend": `SELECT pg_backend_pid()`,
		"FrozenServer":  `SELECT unnest(ARRAY[pg_backend_pid(), split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int])`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := open(t, testenv.PostgresServer(t).URL()+"&pool_max_conns=1")
			rows, _ := pool.Query(t.Context(), freeze) // CollectRows returns its error
			pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
			if err != nil {
				t.Fatal(err)
			}
			for _, pid := range pids {
				testenv.Freeze(t, pid)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := pool.Exec(ctx, `SELECT`); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("query on a frozen connection: %v, want %v", err, context.DeadlineExceeded)
			}
			began := time.Now()
			testenv.Eventually(t, "the slot is free", func() bool { return pool.Stat().TotalConns() == 0 })
			if took := time.Since(began); took > soon {
				t.Errorf("the slot was free after %v, want %v at most", took, soon)
			}
		})
	}
}

// When one connection swallows what it is sent, the pool abandons all connections of the same
// age, without a ping to each.
func TestAbandonAllAfterOnePingTimeout(t *testing.T) {
	t.Parallel()
	const conns, patience = 8, 4 * time.Second // to ping one after another takes twice as long
	pool := open(t, testenv.PostgresServer(t).URL()+fmt.Sprint("&pool_max_conns=", conns))
	var all []*pgxpool.Conn
	for range conns {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, conn)
	}
	for _, conn := range all {
		testenv.Freeze(t, int(conn.Conn().PgConn().PID()))
		conn.Release()
	}
	<-time.After(1100 * time.Millisecond) // until they count as idle
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := pool.Exec(ctx, `SELECT`); err != nil {
		t.Errorf("within %v: %v", patience, err)
	}
}

// A pool opens few connections at once, however many are wanted. When these fail, the other
// requests fail without an attempt, and so do requests during the pause that follows.
func TestConnectLimiter(t *testing.T) {
	t.Parallel()
	const wanted, atOnce, pause = 16, 4, 500 * time.Millisecond
	server := newRefusingServer(t)
	pool := open(t, fmt.Sprintf("postgres://any@%s/any?sslmode=disable&pool_max_conns=%d", server.address, wanted))
	began := time.Now()
	var group sync.WaitGroup
	for range wanted {
		group.Go(func() {
			if _, err := pool.Exec(t.Context(), `SELECT`); !postgres.IsDown(err) {
				t.Errorf("query on a server that refuses connections: %v", err)
			}
		})
	}
	group.Wait()
	if server.attempts.Load() != atOnce || server.most.Load() != atOnce {
		t.Errorf("%d attempts, %d at once; want %d", server.attempts.Load(), server.most.Load(), atOnce)
	}
	for time.Since(began) < 3*pause {
		_, _ = pool.Exec(t.Context(), `SELECT`) // as above
	}
	attempts, most := server.attempts.Load(), atOnce+int64(time.Since(began)/pause)
	if attempts <= atOnce || attempts > most {
		t.Errorf("%d attempts in %v, want more than %d and at most %d", attempts, time.Since(began), atOnce, most)
	}
}

// refusingServer accepts each connection and closes it after a while.
type refusingServer struct {
	address              string
	attempts, open, most atomic.Int64
}

func newRefusingServer(t *testing.T) *refusingServer {
	t.Helper()
	const held = 300 * time.Millisecond
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	s := &refusingServer{address: listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.attempts.Add(1)
			s.most.Store(max(s.most.Load(), s.open.Add(1)))
			time.AfterFunc(held, func() {
				s.open.Add(-1)
				_ = conn.Close()
			})
		}
	}()
	return s
}

// A read with ConfirmSQL waits for the standby as a write does.
func TestConfirmSQL(t *testing.T) {
	t.Parallel()
	primary := testenv.PostgresServer(t)
	standby := testenv.PostgresStandby(t, primary)
	pool := open(t, primary.URL())
	if err := standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, sql := range map[string]string{"read": `SELECT`, "confirm": postgres.ConfirmSQL} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := pool.Exec(ctx, sql)
		cancel()
		if confirms := sql == postgres.ConfirmSQL; confirms != errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, without the standby: %v", name, err)
		}
	}
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), postgres.ConfirmSQL); err != nil {
		t.Errorf("with the standby back: %v", err)
	}
}

func TestInTx(t *testing.T) {
	t.Parallel()
	pool := open(t, testenv.Postgres(t))
	deadlock := &pgconn.PgError{Code: "40P01"}
	other := errors.New("other")
	tests := []struct {
		name      string
		errs      []error // of each run
		wantRuns  int
		wantError error
	}{
		{"OK", []error{nil}, 1, nil},
		{"RunsAgain", []error{deadlock, &pgconn.PgError{Code: "40001"}, nil}, 3, nil},
		{"OtherError", []error{other, nil}, 1, other},
		{"GivesUp", []error{deadlock, deadlock, deadlock, deadlock, deadlock, nil}, 5, deadlock},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			runs := 0
			err := postgres.InTx(t.Context(), pool, func(pgx.Tx) error {
				runs++
				return test.errs[runs-1]
			})
			if runs != test.wantRuns || !errors.Is(err, test.wantError) {
				t.Errorf("%d runs, %v; want %d, %v", runs, err, test.wantRuns, test.wantError)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err                     error
		data, down, unavailable bool
	}{
		{nil, false, false, false},
		{io.ErrUnexpectedEOF, false, true, true},
		{context.DeadlineExceeded, false, true, true},
		{pg("08006"), false, true, true},  // connection_failure
		{pg("28P01"), false, true, true},  // invalid_password
		{pg("3D000"), false, true, true},  // invalid_catalog_name
		{pg("57P01"), false, true, true},  // admin_shutdown
		{pg("53300"), false, true, true},  // too_many_connections
		{pg("25006"), false, true, true},  // read_only_sql_transaction
		{pg("57014"), false, false, true}, // query_canceled
		{pg("58030"), false, false, true}, // io_error
		{pg("58P01"), false, false, true}, // undefined_file
		{pg("55P03"), false, false, true}, // lock_not_available
		{pg("40001"), false, false, true}, // serialization_failure
		{pg("40P01"), false, false, true}, // deadlock_detected
		{pg("23514"), true, false, false}, // check_violation
		{pg("22003"), true, false, false}, // numeric_value_out_of_range
		{pg("P0001"), true, false, false}, // raise_exception
		{pg("42P01"), false, false, false},
		{pg("XX000"), false, false, false},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.err), func(t *testing.T) {
			t.Parallel()
			wrapped := test.err
			if wrapped != nil {
				wrapped = fmt.Errorf("wrapped: %w", test.err)
			}
			data, down, unavailable := postgres.IsDataFault(wrapped), postgres.IsDown(wrapped), postgres.IsUnavailable(wrapped)
			if data != test.data || down != test.down || unavailable != test.unavailable {
				t.Errorf("data %t, down %t, unavailable %t; want %t, %t, %t", data, down, unavailable, test.data, test.down, test.unavailable)
			}
		})
	}
}

func pg(code string) error { return &pgconn.PgError{Code: code} }

func TestSchema(t *testing.T) {
	t.Parallel()
	pool := open(t, testenv.Postgres(t))
	var version int64
	if err := pool.QueryRow(t.Context(), `SELECT max(version_id) FROM passbook_schema_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	check := func(when string, err error, bad bool) {
		t.Helper()
		if errors.Is(err, postgres.ErrSchema) != bad || (err != nil) != bad {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("the same", postgres.CheckSchema(t.Context(), pool, version), false)
	check("an older database", postgres.CheckSchema(t.Context(), pool, version+1), true)
	check("a newer database", postgres.CheckSchema(t.Context(), pool, version-1), true)
	check("ready on the same", postgres.CheckReady(t.Context(), pool, version), false)
	check("ready on a newer one", postgres.CheckReady(t.Context(), pool, version-1), false)
	check("ready on an older one", postgres.CheckReady(t.Context(), pool, version+1), true)
	if _, err := pool.Exec(t.Context(), `DROP TABLE passbook_schema_version`); err != nil {
		t.Fatal(err)
	}
	check("never migrated", postgres.CheckSchema(t.Context(), pool, version), true)
}

// A process that starts before its Postgres waits for it.
func TestAwaitSchema(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool := open(t, server.URL())
	var version int64
	if err := pool.QueryRow(t.Context(), `SELECT max(version_id) FROM passbook_schema_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	waiting, done := make(chan struct{}, 1), make(chan error, 1)
	log := slog.New(slog.NewTextHandler(signal{waiting}, nil))
	go func() { done <- postgres.AwaitSchema(t.Context(), pool, version, log) }()
	<-waiting
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// signal is a log writer that signals each line.
type signal struct{ logged chan struct{} }

func (s signal) Write(line []byte) (int, error) {
	select {
	case s.logged <- struct{}{}:
	default:
	}
	return len(line), nil
}

// The first of two servers is cut off: its host answers nothing, as one that lost its power. The
// pool finds the other one long before the kernel gives the first connect up, after two minutes.
func TestOpenWithASilentHost(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = testenv.SilentAddress(t) + "," + u.Host
	u.RawQuery += "&target_session_attrs=read-write"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := open(t, u.String()).Exec(ctx, `SELECT 1`); err != nil {
		t.Error(err)
	}
}
