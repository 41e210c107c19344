package ledger_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A key that has made a job opens no account, also when the job is archived.
func TestOpenWithAJobsKey(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	id := ledgertest.Job(t, pool, ledgertest.Account(t, pool, user, 0), ledger.Deposit, 1)
	open := func(when string) {
		t.Helper()
		got, replayed, err := ledger.NewAccounts(pool).Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW", Key: id.String()})
		if !errors.Is(err, ledger.ErrKeyReused) {
			t.Errorf("%s: opened %+v, replayed %t, %v; want ErrKeyReused", when, got, replayed, err)
		}
	}
	open("live")
	apply(t, pool, id)
	ledgertest.Exec(t, pool, ledgertest.ToArchive+`; DELETE FROM jobs`)
	open("archived")
}

// Openings of a user in several processes count each other, before their commits too.
func TestOpen_MaxPerUser(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user, other := ledgertest.User(t, pool), ledgertest.User(t, pool)
	release := holdOpenings(t, pool)
	process := func() *ledger.Accounts {
		accounts := ledger.NewAccounts(pool)
		accounts.MaxPerUser = 1
		return accounts
	}
	open := func(ctx context.Context, user uuid.UUID) error {
		_, _, err := process().Open(ctx, ledger.Opening{UserID: user, Currency: "KRW"})
		return err
	}
	first := make(chan error, 1)
	go func() { first <- open(t.Context(), user) }()
	awaitHeldOpening(t, pool)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // more than an opening tries
	defer cancel()
	if err := open(ctx, user); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("beside an uncommitted opening: %v, want %v", err, postgres.ErrLocked)
	}
	release()
	if err := <-first; err != nil {
		t.Errorf("the first opening: %v", err)
	}
	if err := open(t.Context(), user); !errors.Is(err, ledger.ErrTooManyAccounts) {
		t.Errorf("the second opening: %v, want %v", err, ledger.ErrTooManyAccounts)
	}
	if err := open(t.Context(), other); err != nil {
		t.Errorf("another user's: %v", err)
	}
}

// holdOpenings keeps every opening from its commit until release.
func holdOpenings(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	ledgertest.Exec(t, pool, `
		CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END';
		CREATE TRIGGER wait_for_test BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION wait_for_test()`)
	holding, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holding.Exec(t.Context(), `SELECT pg_advisory_xact_lock(42)`); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := holding.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitHeldOpening waits until an opening is held before its commit.
func awaitHeldOpening(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	const waiting = `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted`
	testenv.Eventually(t, "an opening to be uncommitted", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), waiting).Scan(&n)
		return err == nil && n == 1
	})
}

// Many openings of one user at the same time follow one another, and wait without connections. One
// that is given up opens nothing.
func TestOpen_ManyAtOnce(t *testing.T) {
	t.Parallel()
	const many = 40 // more than LockRetries lets wait, and more than the pool's connections
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	accounts := ledger.NewAccounts(pool)
	accounts.MaxPerUser = many + 1
	release := holdOpenings(t, pool)
	opened := make(chan error, many)
	for range many {
		go func() {
			_, _, err := accounts.Open(t.Context(), ledger.Opening{UserID: user, Currency: "KRW"})
			opened <- err
		}()
	}
	testenv.Eventually(t, "all openings to hold the user's lock or to wait for it", func() bool { return accounts.Opening(user) == many || len(opened) > 0 })
	awaitHeldOpening(t, pool)
	testenv.Eventually(t, "one opening to hold a connection, which it gives back between its attempts", func() bool {
		n := pool.Stat().AcquiredConns() // the opening's, and that of the test
		if n > 2 {
			t.Errorf("%d openings hold %d connections", many, n-1)
		}
		return n >= 2
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := accounts.Open(ended, ledger.Opening{UserID: user, Currency: "KRW"}); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("an opening that is given up: %v, want %v", err, postgres.ErrLocked)
	}
	release()
	for range many {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
	if list, err := accounts.List(t.Context(), user, 0, many+1); err != nil || len(list) != many {
		t.Errorf("%d accounts, %v; want %d", len(list), err, many)
	}
	if n := accounts.Opening(user); n != 0 {
		t.Errorf("%d openings still wait", n)
	}
}
