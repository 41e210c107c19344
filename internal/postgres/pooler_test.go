package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/postgres/postgrestest"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Behind a pooler a session without the settings is refused, and the error says each of them, and the
// SQL that repairs it: postgrestest.Pooler runs it.
func TestPoolerChecksSettings(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	for name, value := range map[string]string{"search_path": "'elsewhere'", "synchronous_commit": "off", "default_transaction_isolation": "'serializable'"} {
		alterDatabase(t, server.URL(), name, value)
	}
	bouncer := testenv.PgBouncer(t, local.PgBouncerConfig{Server: server, ServerConns: 1})
	err := openServing(t, bouncer.URL()).Ping(t.Context())
	if !errors.Is(err, postgres.ErrUnsuitable) {
		t.Fatalf("%v, want %v", err, postgres.ErrUnsuitable)
	}
	for _, want := range []string{
		`search_path is "elsewhere" instead of "public, pg_temp"`, `synchronous_commit is "off" instead of "on"`, `statement_timeout is "0" instead of "3000"`,
		`ALTER ROLE passbook SET search_path = public, pg_temp;`, `ALTER ROLE passbook SET default_transaction_isolation = 'read committed'`,
		`ALTER ROLE passbook SET enable_seqscan = 'off'`, "RECONNECT",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: lacks %q", err, want)
		}
	}

	bouncer = postgrestest.Pooler(t, server, 2)
	pool := openServing(t, bouncer.URL())
	for name, want := range map[string]string{"search_path": "public, pg_temp", "synchronous_commit": "on", "default_transaction_isolation": "read committed", "timezone": "UTC"} {
		if got := setting(t, pool, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	t.Run("SearchPathOfTheURL", func(t *testing.T) {
		err := openServing(t, bouncer.URL()+"&search_path=bank").Ping(t.Context())
		if !errors.Is(err, postgres.ErrUnsuitable) || !strings.Contains(err.Error(), "SET search_path = bank") {
			t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
		}
	})
}

func openServing(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 8, Application: "test", Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// More connections than the pooler has to the server run the same statements at once. None is prepared
// in a session of the server, where another client would meet it.
func TestPoolerSharesSessions(t *testing.T) {
	t.Parallel()
	const conns, rounds = 8, 40
	bouncer := postgrestest.Pooler(t, testenv.PostgresServer(t), 2)
	pool := openServing(t, bouncer.URL())
	execute(t, bouncer.URL(), `CREATE TABLE facts (n bigint)`)
	var group errgroup.Group
	for i := range conns {
		group.Go(func() error {
			for n := range rounds {
				var sum int
				if err := pool.QueryRow(t.Context(), `SELECT $1::int + $2::int`, i, n).Scan(&sum); err != nil || sum != i+n {
					return fmt.Errorf("%d + %d is %d: %w", i, n, sum, err)
				}
				err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), `INSERT INTO facts VALUES ($1)`, n)
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	var facts, prepared int
	if err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM facts), (SELECT count(*) FROM pg_prepared_statements)`).Scan(&facts, &prepared); err != nil {
		t.Fatal(err)
	}
	if facts != conns*rounds || prepared > 0 {
		t.Errorf("%d facts and %d prepared statements, want %d and none", facts, prepared, conns*rounds)
	}
}

// A transaction waits for its flush, whatever another client has set in the shared session. Here a
// standby that is away keeps each such commit waiting.
func TestPoolerCommitsDurably(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]func(context.Context, *pgxpool.Pool) error{
		"InTx": func(ctx context.Context, pool *pgxpool.Pool) error {
			return postgres.InTx(ctx, pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `CREATE TABLE facts ()`)
				return err
			})
		},
		"Confirm": func(ctx context.Context, pool *pgxpool.Pool) error {
			_, err := pool.Exec(ctx, postgres.ConfirmSQL)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testenv.PostgresServerWith(t, map[string]string{"synchronous_commit": ""})
			bouncer := postgrestest.Pooler(t, server, 1)
			pool := openServing(t, bouncer.URL())
			if err := pool.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			testenv.Meddle(t, bouncer)
			back := testenv.AwayStandby(t, server.URL())
			ended := make(chan error, 1)
			go func() { ended <- commit(t.Context(), pool) }()
			direct := open(t, server.URL())
			testenv.Eventually(t, "the commit to wait for the standby", func() (waits bool) {
				if len(ended) > 0 {
					t.Fatalf("the commit waited for nothing: %v", <-ended)
				}
				const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`
				if err := direct.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
					t.Fatal(err)
				}
				return waits
			})
			back()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// PgBouncer keeps connections open over a crash of its server. A read before the crash is not confirmed
// after it nevertheless. Reads of what is old cost nothing, as without a pooler.
func TestGate_Pooler(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	g := newGated(t, postgrestest.Pooler(t, server, 3).URL())
	g.write("old")
	g.passes("a fact", g.read("old"))
	confirmed := g.count()
	g.passes("an old fact", g.read("old"))
	if more := g.count() - confirmed; more != 0 {
		t.Errorf("%d confirmations of what is old", more)
	}
	g.write("new")
	newest := g.read("new")
	_, unreported := g.gate.Watch(t.Context())
	conns := g.pool.Stat().NewConnsCount()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the server to be back", func() bool { return g.pool.Ping(t.Context()) == nil })
	if more := g.pool.Stat().NewConnsCount() - conns; more != 0 {
		t.Errorf("%d new connections: the test needs those of before the crash", more)
	}
	for what, shown := range map[string]*postgres.Shown{"a fact": newest, "a request that reported nothing": unreported} {
		if err := g.gate.Wait(t.Context(), shown); !errors.Is(err, postgres.ErrUnconfirmed) {
			t.Errorf("%s, read before the crash: %v, want %v", what, err, postgres.ErrUnconfirmed)
		}
	}
	g.write("again")
	g.passes("what is read after the crash", g.read("again"))
}

// A fault that does not pass ends the wait at once, also if a pooler says it.
func TestAwaitNamesPermanentFaults_Pooler(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	execute(t, server.URL(), `CREATE ROLE idle NOLOGIN PASSWORD '`+secret+`'`)
	execute(t, server.URL(), `CREATE ROLE teller LOGIN PASSWORD 'another'`)
	execute(t, server.URL(), `CREATE ROLE clerk LOGIN PASSWORD '`+secret+`'`)
	execute(t, server.URL(), `CREATE DATABASE closed`)
	execute(t, server.URL(), `REVOKE CONNECT ON DATABASE closed FROM PUBLIC`)
	bouncer := testenv.PgBouncer(t, local.PgBouncerConfig{
		Server: server, ServerConns: 1, Users: map[string]string{"idle": secret, "teller": secret, "clerk": secret, "ghost": secret},
	})
	for name, test := range map[string]struct {
		edit func(*url.URL)
		want []string
	}{
		"Password":         {as("passbook"), []string{"authentication failed", "correct the user or the password"}},
		"User":             {as("stranger"), []string{"correct the user"}},
		"PasswordInPooler": {as("teller"), []string{"authentication failed", "auth_file"}},
		"Role":             {as("ghost"), []string{"ghost", "correct the user"}},
		"RoleMayNotLogIn":  {as("idle"), []string{"not permitted to log in"}},
		"Database":         {both(as("clerk"), database("nowhere")), []string{"nowhere", "create it"}},
		"Grant":            {both(as("clerk"), database("closed")), []string{"permission denied", "grant"}},
		"Parameter":        {both(as("clerk"), query("work_mem", "4MB")), []string{"work_mem", "ignore_startup_parameters"}},
		"TLSRefused":       {query("sslmode", "require"), []string{"takes no TLS", "sslmode"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(bouncer.URL())
			if err != nil {
				t.Fatal(err)
			}
			test.edit(u)
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			err = postgres.AwaitSchema(t.Context(), open(t, u.String()), 1, log)
			if !errors.Is(err, postgres.ErrMisconfigured) {
				t.Fatalf("%v, want %v", err, postgres.ErrMisconfigured)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%v: holds the password", err)
			}
		})
	}
}

// A fault that may pass has no advice. PgBouncer of the tests has no certificate, so this is the test of
// the advice to a client without TLS.
func TestAdviceOfPooler(t *testing.T) {
	t.Parallel()
	const refused = "SSL required"
	if got := postgres.AdviceOfPooler(refused); !strings.Contains(got, "sslmode") {
		t.Errorf("%q: %q", refused, got)
	}
	for _, passing := range []string{
		"server_login_retry", "query_wait_timeout", "no more connections allowed (max_client_conn)", "pgbouncer cannot connect to server",
		"the database system is starting up", "sorry, too many clients already", "client_login_timeout",
	} {
		if got := postgres.AdviceOfPooler(passing); got != "" {
			t.Errorf("%q may pass, and the advice is %q", passing, got)
		}
	}
}

// A process waits for a server that is away behind its pooler.
func TestAwaitWaits_Pooler(t *testing.T) {
	t.Parallel()
	server := testenv.EmptyPostgresServer(t)
	bouncer := postgrestest.Pooler(t, server, 1)
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool := open(t, bouncer.URL())
	waiting := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		log := slog.New(slog.NewTextHandler(signal{waiting}, nil))
		done <- postgres.Await(t.Context(), pool, log, func(ctx context.Context) error { return pool.Ping(ctx) })
	}()
	<-waiting
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What needs sessions of its own is refused with its name.
func TestPoolerRefusesWhatIsDirect(t *testing.T) {
	t.Parallel()
	bouncer := postgrestest.Pooler(t, testenv.PostgresServer(t), 1)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: bouncer.URL(), Serving: true, Direct: "READ_DATABASE_URL"})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.Ping(t.Context()); !errors.Is(err, postgres.ErrUnsuitable) || !strings.Contains(err.Error(), "READ_DATABASE_URL") {
		t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
	}
	err = postgres.AwaitDirect(t.Context(), openServing(t, bouncer.URL()), slog.New(slog.DiscardHandler), "DATABASE_URL", "another")
	if !errors.Is(err, postgres.ErrUnsuitable) {
		t.Errorf("%v, want %v", err, postgres.ErrUnsuitable)
	}
}
