package statement_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/internal/test/testenv"
)

// replicated is an account on a primary that has a replica.
type replicated struct {
	t                *testing.T
	primary, replica *pgxpool.Pool
	user             uuid.UUID
	number           string
}

func connect(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.AfterConnect = postgres.SecureSession // a replica is compared with its primary by what it learns
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// account returns the account as the primary has it now.
func (r *replicated) account() ledger.Account {
	r.t.Helper()
	account, err := ledger.NewAccounts(r.primary).Account(r.t.Context(), r.user, r.number)
	if err != nil {
		r.t.Fatal(err)
	}
	return account
}

func (r *replicated) deposit(amount int64) {
	r.t.Helper()
	id := ledgertest.Job(r.t, r.primary, r.account(), ledger.Deposit, amount)
	if _, _, err := ledger.NewApplier(r.primary).Apply(r.t.Context(), id, 1); err != nil {
		r.t.Fatal(err)
	}
}

// answerTime is enough for all reads of ask.
const answerTime = 10 * time.Second

// answers are what each kind of read says of the account's history.
type answers struct {
	listed, exported []int64
	last, balance    int64
}

func (r *replicated) ask(statements *statement.Statements) (got answers, err error) {
	r.t.Helper()
	account := ledger.Owned{UserID: r.user, Number: r.number}
	ctx, cancel := context.WithTimeout(r.t.Context(), answerTime) // one that hangs is wrong
	defer cancel()
	page := statement.Page{Account: account, Ascending: true, Limit: 10}
	listed, err := statements.List(ctx, page)
	if err != nil {
		return answers{}, err
	}
	for _, entry := range listed {
		got.listed = append(got.listed, entry.Seq)
	}
	got.exported, err = exportSeqs(ctx, statements, page)
	last, lastErr := statements.Transaction(ctx, account, r.account().LastSeq)
	balance, balanceErr := statements.Balance(ctx, account, last.CreatedAt)
	got.last, got.balance = last.Seq, balance.Seq
	return got, errors.Join(err, lastErr, balanceErr)
}

// wantSeqs fails the test unless each read shows the whole history at once.
func (r *replicated) wantSeqs(statements *statement.Statements, want ...int64) {
	r.t.Helper()
	got, err := r.ask(statements)
	if err != nil || !got.is(want) {
		r.t.Errorf("got %+v, %v; want %v", got, err, want)
	}
}

// comes waits until each read shows the whole history: here no primary answers where the replica is
// too slow.
func (r *replicated) comes(statements *statement.Statements, want ...int64) {
	r.t.Helper()
	testenv.Eventually(r.t, "the replica's answers", func() bool {
		got, err := r.ask(statements)
		if err == nil && !got.is(want) {
			r.t.Fatalf("the replica answered %+v, want %v", got, want)
		}
		return err == nil
	})
}

// absenceIsThePrimarys fails the test unless a read that finds nothing reports the server life of the
// primary: a 404 is confirmed in that life.
func (r *replicated) absenceIsThePrimarys(statements *statement.Statements) {
	r.t.Helper()
	ctx, shown := postgres.WithShown(r.t.Context())
	if _, err := statements.Transaction(ctx, ledger.Owned{UserID: r.user, Number: r.number}, 1000); !errors.Is(err, statement.ErrNotFound) {
		r.t.Errorf("an unknown transaction: %v, want %v", err, statement.ErrNotFound)
	}
	if shown.Life() == (postgres.ServerLife{}) {
		r.t.Error("an unknown transaction is of no server life")
	}
	ctx, shown = postgres.WithShown(r.t.Context())
	if _, err := statements.List(ctx, statement.Page{Account: ledger.Owned{UserID: r.user, Number: "UNKNOWN"}, Limit: 1}); !errors.Is(err, ledger.ErrAccountNotFound) {
		r.t.Errorf("an unknown account: %v, want %v", err, ledger.ErrAccountNotFound)
	}
	if shown.Life() == (postgres.ServerLife{}) {
		r.t.Error("an unknown account is of no server life")
	}
}

func (got answers) is(want []int64) bool {
	last := want[len(want)-1]
	return slices.Equal(got.listed, want) && slices.Equal(got.exported, want) && got.last == last && got.balance == last
}

// freeze stops the server's side of a pool's idle connections.
func freeze(t *testing.T, pool *pgxpool.Pool) (thaw func()) {
	t.Helper()
	var pids []int
	for _, conn := range pool.AcquireAllIdle(t.Context()) {
		pids = append(pids, int(conn.Conn().PgConn().PID()))
		conn.Release()
	}
	if len(pids) == 0 {
		t.Fatal("no connection to freeze")
	}
	return testenv.Freeze(t, pids...)
}

func TestReplica(t *testing.T) {
	t.Parallel()
	primary := testenv.PostgresServer(t)
	standby := testenv.PostgresStandby(t, primary)
	r := &replicated{t: t, primary: connect(t, primary.URL()), replica: connect(t, standby.URL())}
	r.user = ledgertest.User(t, r.primary)
	r.number = ledgertest.Account(t, r.primary, r.user, 100).Number
	// A primary that has accounts and no history.
	ledgertest.Exec(t, r.primary, `CREATE SCHEMA accounts_alone CREATE VIEW accounts AS SELECT xmin, * FROM public.accounts`)
	accountsAlone := connect(t, primary.URL()+"&search_path=accounts_alone")
	var (
		statements = statement.New(r.primary, r.replica)
		byReplica  = statement.New(accountsAlone, r.replica)
	)
	r.deposit(1)
	r.comes(byReplica, 1, 2)
	r.wantSeqs(statements, 1, 2)
	r.absenceIsThePrimarys(statements)
	// What may change is for the primary to answer, and to close.
	later, account := time.Now().Truncate(time.Microsecond), ledger.Owned{UserID: r.user, Number: r.number}
	if balance, err := byReplica.Balance(t.Context(), account, later); err == nil {
		t.Errorf("a replica answered %+v for a time after the last transaction", balance)
	}
	if balance, err := statements.Balance(t.Context(), account, later); err != nil || balance.Seq != 2 || !balance.At.Equal(later) {
		t.Errorf("balance %+v, %v; want that after 2 at %v", balance, err, later)
	}
	r.comes(byReplica, 1, 2)

	ledgertest.Exec(t, r.replica, `SELECT pg_wal_replay_pause()`)
	testenv.Eventually(t, "the replica to stand still", func() (paused bool) {
		if err := r.replica.QueryRow(t.Context(), `SELECT pg_get_wal_replay_pause_state() = 'paused'`).Scan(&paused); err != nil {
			t.Fatal(err)
		}
		return paused
	})
	r.deposit(1)
	r.wantSeqs(statements, 1, 2, 3)
	if seqs, err := byReplica.List(t.Context(), statement.Page{Account: ledger.Owned{UserID: r.user, Number: r.number}, Limit: 10}); err == nil {
		t.Errorf("a replica that is behind answered: %v", seqs)
	}
	opened := ledgertest.Account(t, r.primary, r.user, 5) // the replica knows nothing of it
	if balance, err := statements.Balance(t.Context(), ledger.Owned{UserID: r.user, Number: opened.Number}, time.Time{}); err != nil || balance.Balance != 5 {
		t.Errorf("balance %+v, %v; want 5", balance, err)
	}

	ledgertest.Exec(t, r.replica, `SELECT pg_wal_replay_resume()`)
	r.comes(byReplica, 1, 2, 3)

	thaw := freeze(t, r.replica)
	r.wantSeqs(statements, 1, 2, 3)
	thaw()

	if err := standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantSeqs(statements, 1, 2, 3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := statements.List(ctx, statement.Page{Account: ledger.Owned{UserID: r.user, Number: r.number}, Limit: 1}); err == nil {
		t.Error("a list without time was answered")
	}
}

// Nothing is read from a replica of another history, such as one that still follows the former
// primary after a failover.
func TestReplica_OfAnotherHistory(t *testing.T) {
	t.Parallel()
	primary := testenv.PostgresServer(t)
	standby := testenv.PostgresStandby(t, primary)
	r := &replicated{t: t, primary: connect(t, primary.URL()), replica: connect(t, standby.URL())}
	r.user = ledgertest.User(t, r.primary)
	r.number = ledgertest.Account(t, r.primary, r.user, 100).Number
	r.deposit(1)
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := &replicated{t: t, primary: r.replica, user: r.user, number: r.number}
	testenv.Eventually(t, "the standby to have it all", func() bool { return other.account().LastSeq == 2 })
	ledgertest.Exec(t, r.replica, `ALTER SYSTEM RESET synchronous_standby_names`) // it was copied with the data
	ledgertest.Exec(t, r.replica, `SELECT pg_reload_conf()`)
	other.deposit(5)
	r.wantSeqs(statement.New(r.primary, r.replica), 1, 2)
}
