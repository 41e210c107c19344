package worker_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// Two workers apply each job once and in order, although its tasks are doubled and out of
// order.
func TestTasksOutOfOrder(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	s.work()
	s.work()
	type task struct {
		account ledger.Account
		id      uuid.UUID
	}
	var tasks []task
	order := map[string][]uuid.UUID{}
	var accounts []ledger.Account
	for range 5 {
		accounts = append(accounts, ledgertest.Account(t, s.pool, s.user, 0))
	}
	for range 60 {
		for _, account := range accounts {
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 3)
			tasks = append(tasks, task{account, id}, task{account, id})
			order[account.Number] = append(order[account.Number], id)
		}
	}
	rand.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
	for _, task := range tasks {
		s.enqueue(task.account, task.id)
	}
	s.drained()
	for _, account := range accounts {
		s.inOrder(account, order[account.Number])
	}
}

// While Postgres is down no job or task spends an attempt. When it is back the jobs are
// applied.
func TestPostgresDown(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ledgertest.CountAttempts(t, pool)
	s := newSystem(t, pool, testenv.Redis(t))
	var accounts []ledger.Account
	order := map[string][]uuid.UUID{}
	for range 3 {
		accounts = append(accounts, ledgertest.Account(t, s.pool, s.user, 0))
	}
	for range 20 {
		for _, account := range accounts {
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
			order[account.Number] = append(order[account.Number], id)
			s.enqueue(account, id)
		}
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	stop := s.work()
	inspector := asynq.NewInspectorFromRedisClient(s.redis)
	testenv.Eventually(t, "an active task", func() bool {
		active, err := inspector.ListActiveTasks(queues.Of(accounts[0].ID))
		return err == nil && len(active) == 1
	})
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.drained()
	stop()
	for _, account := range accounts {
		s.inOrder(account, order[account.Number])
	}
	if n := ledgertest.Attempts(t, s.pool); n != 0 {
		t.Errorf("%d attempts spent, want none", n)
	}
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err == nil && info.FailedTotal != 0 {
			t.Errorf("%d failures counted in %s, want none", info.FailedTotal, info.Queue)
		}
	}
}

// A connection swallows everything, as in a lost network; here its server process is frozen.
// It delays a partition for one round trip, not for as long as a task may take.
func TestConnectionThatSwallows(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	connect := func() *pgxpool.Pool {
		cfg, err := pgxpool.ParseConfig(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		cfg.MaxConns = 16
		cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // as for a connection that was just used
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	redisURL := testenv.Redis(t)
	ours, theirs := newSystem(t, connect(), redisURL), newSystem(t, connect(), redisURL)
	theirs.work()
	account := ledgertest.Account(t, ours.pool, ours.user, 0)
	ours.enqueue(account, ledgertest.Job(t, ours.pool, account, ledger.Deposit, 1))
	ours.drained()

	freeze(t, theirs.pool)
	started := time.Now()
	ours.enqueue(account, ledgertest.Job(t, ours.pool, account, ledger.Deposit, 1))
	ours.drained()
	if took := time.Since(started); took > 2*postgres.RoundTripTimeout {
		t.Errorf("took %v, want no more than %v", took, 2*postgres.RoundTripTimeout)
	}
}

// freeze stops the server processes of a pool's idle connections until the test ends.
func freeze(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	var frozen []*pgxpool.Conn
	for _, conn := range pool.AcquireAllIdle(t.Context()) {
		frozen = append(frozen, conn)
		testenv.Freeze(t, int(conn.Conn().PgConn().PID()))
	}
	for _, conn := range frozen {
		conn.Release()
	}
	if len(frozen) == 0 {
		t.Fatal("no connection was idle")
	}
}

// A job that can't be applied ends failed, and the next jobs of its account are applied.
func TestFailedJob(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	s.work()
	account := ledgertest.Account(t, s.pool, s.user, 0)
	unlucky := ledgertest.Job(t, s.pool, account, ledger.Deposit, 13)
	after := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
	s.enqueue(account, unlucky)
	s.enqueue(account, after)
	s.drained()
	if failed, succeeded := s.count(job.Failed), s.count(job.Succeeded); failed != 1 || succeeded != 1 {
		t.Errorf("%d failed and %d succeeded, want one each", failed, succeeded)
	}
	s.inOrder(account, []uuid.UUID{after})
}

// An error of one account does not affect the others of its task. One account is locked, one
// has a job that Postgres refuses, and one job does not exist. The other accounts finish in
// the same batch, or have applied their share and remain.
func TestSharedTask(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t)}) // waits for locks as long as a worker's does
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := newSystem(t, pool, testenv.Redis(t))
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	type backlog struct {
		account ledger.Account
		jobs    []uuid.UUID
	}
	queued := func(amounts ...int64) (b backlog) {
		b.account = ledgertest.Account(t, s.pool, s.user, 0)
		for _, amount := range amounts {
			b.jobs = append(b.jobs, ledgertest.Job(t, s.pool, b.account, ledger.Deposit, amount))
		}
		return b
	}
	locked, refused := queued(1), queued(1, 13, 1)
	long, short, one := queued(slices.Repeat([]int64{1}, 150)...), queued(1, 1), queued(1)
	task := []uuid.UUID{uuid.New()}
	for _, b := range []backlog{locked, refused, long, short, one} {
		task = append(task, b.jobs[len(b.jobs)-1])
	}
	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // the transaction has ended by then
	if _, err := lock.Exec(t.Context(), `SELECT FROM accounts WHERE id = $1 FOR UPDATE`, locked.account.ID); err != nil {
		t.Fatal(err)
	}

	var jobs []queue.Notification
	for _, id := range task {
		jobs = append(jobs, queue.Notification{JobID: id, Jobs: 1})
	}
	remaining, troubled, err := s.sweeper().Apply(t.Context(), jobs)
	if !worker.IsFailure(err) || !slices.Equal(idsOf(remaining), long.jobs[149:]) || !slices.Equal(idsOf(troubled), task[:3]) {
		t.Errorf("after the first batch %v remain and %v are troubled, %v; want %v, %v and a refusal", remaining, troubled, err, long.jobs[149], task[:3])
	}
	left := map[int64]int{}
	rows, err := s.pool.Query(t.Context(), `SELECT account_id, count(*) FROM queue GROUP BY account_id`)
	if err != nil {
		t.Fatal(err)
	}
	var account int64
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&account, &n}, func() error {
		left[account] = n
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := left[long.account.ID]; got == 0 || got > 140 {
		t.Errorf("%d jobs of the long backlog remain of 150", got)
	}
	delete(left, long.account.ID)
	if want := map[int64]int{locked.account.ID: 1, refused.account.ID: 2}; !maps.Equal(left, want) {
		t.Errorf("queued jobs by account are %v, want %v", left, want)
	}

	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.work()
	s.drained()
	refused.jobs = slices.Delete(refused.jobs, 1, 2)
	for _, b := range []backlog{locked, refused, long, short, one} {
		s.inOrder(b.account, b.jobs)
	}
}

// A file of one account's data that can't be read is the trouble of that account: the task ends, and the
// partition's other accounts go on.
func TestApplyAnUnreadableAccount(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	unreadable, well := ledgertest.Account(t, s.pool, s.user, 0), ledgertest.Account(t, s.pool, s.user, 0)
	ledgertest.Exec(t, s.pool, fmt.Sprintf(`
		CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not read block 7' USING ERRCODE = '58030'; END $$;
		CREATE TRIGGER trouble BEFORE INSERT ON transactions FOR EACH ROW WHEN (NEW.account_id = %d) EXECUTE FUNCTION trouble()`, unreadable.ID))
	jobs := []queue.Notification{
		{JobID: ledgertest.Job(t, s.pool, unreadable, ledger.Deposit, 1), AccountID: unreadable.ID, Jobs: 1},
		{JobID: ledgertest.Job(t, s.pool, well, ledger.Deposit, 1), AccountID: well.ID, Jobs: 1},
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a worker that waits would wait for ever
	defer cancel()
	remaining, troubled, err := s.sweeper().Apply(ctx, jobs)
	if postgres.SQLState(err) != "58030" || worker.IsFailure(err) || len(remaining) > 0 || !slices.Equal(idsOf(troubled), idsOf(jobs[:1])) {
		t.Errorf("%v remain and %v are troubled, %v; want %v and 58030", remaining, troubled, err, jobs[:1])
	}
	if ctx.Err() != nil {
		t.Error("the worker waited with the task")
	}
}

func idsOf(jobs []queue.Notification) (ids []uuid.UUID) {
	for _, n := range jobs {
		ids = append(ids, n.JobID)
	}
	return ids
}

// A worker that stops in the middle of its work loses nothing.
func TestStopAndGoOn(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	var order []uuid.UUID
	for range 400 {
		id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
		order = append(order, id)
		s.enqueue(account, id)
	}
	for round := range 3 {
		stop := s.work()
		testenv.Eventually(t, fmt.Sprint("progress in round ", round), func() bool { return s.count(job.Succeeded) > 40*round })
		stop()
	}
	s.work()
	s.drained()
	s.inOrder(account, order)
}
