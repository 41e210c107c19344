package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

const partitions = 4

var queues = queue.Queues{Prefix: "test", Partitions: partitions}

// system is a worker as cmd/worker ties it, and what a test asks it through.
type system struct {
	t      testing.TB
	pool   *pgxpool.Pool
	redis  redis.UniversalClient
	queues queue.Queues
	client *queue.Client
	server *queue.Server // of the last work
	user   uuid.UUID
}

func newSystem(t testing.TB, pool *pgxpool.Pool, redisURL string) *system {
	t.Helper()
	return newSystemOf(t, pool, redisURL, queues)
}

func newSystemOf(t testing.TB, pool *pgxpool.Pool, redisURL string, queues queue.Queues) *system {
	t.Helper()
	client, err := queue.Connect(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return &system{
		t: t, pool: pool, redis: client, queues: queues,
		client: queue.NewClient(client, queues, slog.New(slog.DiscardHandler), func() {}),
		user:   ledgertest.User(t, pool),
	}
}

// work runs a worker and answers with what stops it.
func (s *system) work() (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := s.worker(ctx.Done())
	server := queue.NewServer(queue.ServerConfig{
		Redis: s.redis, Queues: s.queues, Handler: w.Apply, IsFailure: worker.IsFailure, Log: slog.New(slog.DiscardHandler),
	})
	s.server = server
	var group errgroup.Group
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error { return w.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := group.Wait(); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// sweeper is a worker that only sweeps, when it is told to.
func (s *system) sweeper() *worker.Worker {
	return s.worker(nil)
}

func (s *system) worker(stopping <-chan struct{}) *worker.Worker {
	return worker.New(worker.Config{
		Applier: ledger.NewApplier(s.pool),
		Backlog: job.NewBacklog(s.pool),
		Queue:   s.client,
		Metrics: worker.NewMetrics(prometheus.NewRegistry()),
		Log:     slog.New(slog.DiscardHandler),
	}, stopping)
}

func (s *system) enqueue(account ledger.Account, id uuid.UUID) {
	s.t.Helper()
	if err := s.client.Enqueue(s.t.Context(), queue.Task{AccountID: account.ID, JobID: id}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *system) count(status job.Status) (n int) {
	s.t.Helper()
	if err := s.pool.QueryRow(s.t.Context(), `SELECT count(*) FROM jobs WHERE status = $1`, string(status)).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *system) drained() {
	s.t.Helper()
	testenv.Eventually(s.t, "every job to be finished", func() bool { return s.count(job.Queued) == 0 })
	ledgertest.Check(s.t, s.pool)
}

// inOrder checks that the account's history is in the order of its jobs.
func (s *system) inOrder(account ledger.Account, want []uuid.UUID) {
	s.t.Helper()
	rows, err := s.pool.Query(s.t.Context(), `SELECT job_id FROM transactions WHERE account_id = $1 AND job_id IS NOT NULL ORDER BY seq`, account.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	var got []uuid.UUID
	for rows.Next() {
		var id uuid.UUID
		if err := rows.Scan(&id); err != nil {
			s.t.Fatal(err)
		}
		got = append(got, id)
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("account %s: %d jobs took effect in another order than the %d were accepted in", account.Number, len(got), len(want))
	}
}

// pendingTasks counts the tasks in line.
func (s *system) pendingTasks() (n int) {
	s.t.Helper()
	inspector := asynq.NewInspectorFromRedisClient(s.redis)
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err == nil {
			n += info.Pending
		}
	}
	return n
}

// Tickets doubled and out of order make no difference: two workers apply each
// job once and in order.
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

// Jobs that nobody rang for are found, more than one turn of them.
func TestSweepFindsJobsWithoutATask(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account, other := ledgertest.Account(t, s.pool, s.user, 0), ledgertest.Account(t, s.pool, s.user, 0)
	var order []uuid.UUID
	for range 300 {
		order = append(order, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	}
	ledgertest.Job(t, s.pool, other, ledger.Deposit, 1)
	s.work()
	s.drained()
	s.inOrder(account, order)
}

// Every task is lost while the workers are at it.
func TestSweepAfterFlushAll(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	var jobs int
	for range 20 {
		account := ledgertest.Account(t, s.pool, s.user, 0)
		for range 50 {
			s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
			jobs++
		}
	}
	s.work()
	testenv.Eventually(t, "the first jobs", func() bool { return s.count(job.Succeeded) > 0 })
	if err := s.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.drained()
	if n := s.count(job.Succeeded); n != jobs {
		t.Errorf("%d jobs succeeded, want %d", n, jobs)
	}
}

// A dead worker's task blocks its name until its lease ends, half a minute
// and more; the sweep does not wait for that.
func TestSweepPassesADeadWorkersTask(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
	s.enqueue(account, id)
	// Take the task as a worker does, and die: nothing tells Redis.
	name := queues.Of(account.ID)
	key := "asynq:{" + name + "}:"
	if err := s.redis.RPopLPush(t.Context(), key+"pending", key+"active").Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.redis.HSet(t.Context(), key+"t:"+id.String(), "state", "active").Err(); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	s.work()
	s.drained()
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("took %v, want less than 10 s", took)
	}
}

// However often the sweep meets a backlog whose tasks wait in line, it adds
// none; and where they are lost it adds one an account, not one a job or sweep.
func TestSweepBoundsItsTasks(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	const accounts, jobs, sweeps = 5, 40, 6
	for range accounts {
		account := ledgertest.Account(t, s.pool, s.user, 0)
		for range jobs {
			s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
		}
	}
	w := s.sweeper()
	for range sweeps {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != accounts*jobs {
		t.Errorf("%d tasks in line after %d sweeps, want the %d that were there", n, sweeps, accounts*jobs)
	}
	if err := s.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range sweeps {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != accounts {
		t.Errorf("%d tasks in line after their loss and %d sweeps, want one an account", n, sweeps)
	}
}

// Of accounts that share a task, those that it has not its name of are waited for
// while there is a line, and not for ever: their task may be lost all the same.
func TestSweepBelievesASharedTask(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	const accounts = 5
	partition := queue.Partition(ledgertest.Account(t, s.pool, s.user, 0).ID, partitions)
	for rung := 0; rung < accounts; {
		account := ledgertest.Account(t, s.pool, s.user, 0)
		if queue.Partition(account.ID, partitions) == partition {
			s.client.Notify(account.ID, 1, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1), 1)
			rung++
		}
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.client.Run(now); err != nil { // writes what is rung for
		t.Fatal(err)
	}
	shared := s.pendingTasks() // by how many writers there were rings for
	if shared == 0 || shared == accounts {
		t.Fatalf("%d tasks for %d accounts", shared, accounts)
	}
	w := s.sweeper()
	for sweep := range 2 * worker.LongMissing {
		want := shared
		if sweep >= worker.LongMissing {
			want = accounts
		}
		w.Sweep(t.Context())
		if n := s.pendingTasks(); n != want {
			t.Errorf("%d tasks in line after %d sweeps, want %d", n, sweep+1, want)
		}
	}
}

// Where a backlog is long the sweeps are far apart: so many of them are not waited
// for, though the tasks of jobs accepted since Redis lost all make a line.
func TestSweepCountsTimeToo(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	lost := ledgertest.Account(t, s.pool, s.user, 0)
	partition := queue.Partition(lost.ID, partitions)
	s.enqueue(lost, ledgertest.Job(t, s.pool, lost, ledger.Deposit, 1))
	w := s.sweeper()
	for range 2 {
		w.Sweep(t.Context())
	}
	if err := s.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	account := ledgertest.Account(t, s.pool, s.user, 0)
	for queue.Partition(account.ID, partitions) != partition {
		account = ledgertest.Account(t, s.pool, s.user, 0)
	}
	s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	w.Sweep(t.Context())
	if n := s.pendingTasks(); n != 1 {
		t.Errorf("%d tasks in line after the loss and one sweep, want the one written since", n)
	}
	<-time.After(worker.LongMissing * worker.SweepEvery)
	w.Sweep(t.Context())
	if n := s.pendingTasks(); n != 2 {
		t.Errorf("%d tasks in line after another sweep, want one an account", n)
	}
}

// A task whose line Redis has lost is not believed for ever.
func TestSweepPassesALostPendingList(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	s.enqueue(account, ledgertest.Job(t, s.pool, account, ledger.Deposit, 1))
	line := "asynq:{" + queues.Of(account.ID) + "}:pending"
	if err := s.redis.Del(t.Context(), line).Err(); err != nil {
		t.Fatal(err)
	}
	w := s.sweeper()
	const enough = 40
	for range enough {
		w.Sweep(t.Context())
	}
	if n := s.pendingTasks(); n != 1 {
		t.Errorf("%d tasks in line after %d sweeps, want one", n, enough)
	}
}

// Workers whose clocks are an hour apart write each other tasks that are due in
// an hour, or were an hour ago and nobody's forwarder has come by. The sweep asks
// no clock: such a task has its pause, and no more.
func TestSweepPassesARetriedTask(t *testing.T) {
	t.Parallel()
	const often = 2 * worker.LongRetry
	tests := []struct {
		name  string
		due   func(sweep int) time.Duration // of the next try, from now, by the task's word
		after int                           // sweeps that add no task
	}{
		{"DueInAnHour", func(int) time.Duration { return time.Hour }, worker.LongRetry},
		{"DueAnHourAgo", func(int) time.Duration { return -time.Hour }, worker.LongRetry},
		{"TriedAgain", func(sweep int) time.Duration { return time.Duration(sweep/4) * time.Second }, often},
		{"TriedAgainByAClockAhead", func(sweep int) time.Duration { return time.Hour + time.Duration(sweep/4)*time.Second }, often},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			account := ledgertest.Account(t, s.pool, s.user, 0)
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
			s.enqueue(account, id)
			started, w := time.Now(), s.sweeper()
			for sweep := range test.after {
				s.awaitRetry(account, id, started.Add(test.due(sweep)))
				w.Sweep(t.Context())
			}
			if n := s.pendingTasks(); n != 0 {
				t.Errorf("%d tasks in line after %d sweeps, want none", n, test.after)
			}
			for range worker.LongRetry + 1 {
				w.Sweep(t.Context())
			}
			if n := s.pendingTasks(); n != 1 {
				t.Errorf("%d tasks in line after %d more sweeps, want one", n, worker.LongRetry+1)
			}
		})
	}
}

// awaitRetry makes the account's first task wait for another try, as Asynq does.
func (s *system) awaitRetry(account ledger.Account, id uuid.UUID, due time.Time) {
	s.t.Helper()
	key := "asynq:{" + queues.Of(account.ID) + "}:"
	_, err := s.redis.Pipelined(s.t.Context(), func(p redis.Pipeliner) error {
		p.LRem(s.t.Context(), key+"pending", 0, id.String())
		p.HSet(s.t.Context(), key+"t:"+id.String(), "state", "retry")
		p.ZAdd(s.t.Context(), key+"retry", redis.Z{Score: float64(due.Unix()), Member: id.String()})
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// A Postgres that is down spends nobody's tries, and the work goes on by itself
// when it is back.
func TestPostgresDown(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
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
	testenv.Eventually(t, "tasks in hand", func() bool {
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
	var attempts int
	if err := s.pool.QueryRow(t.Context(), `SELECT coalesce(sum(attempts), 0) FROM jobs`).Scan(&attempts); err != nil {
		t.Fatal(err)
	}
	if attempts != 0 {
		t.Errorf("%d attempts spent, want none", attempts)
	}
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err == nil && info.FailedTotal != 0 {
			t.Errorf("%d failures counted in %s, want none", info.FailedTotal, info.Queue)
		}
	}
}

// A connection that swallows everything, as a lost network does: here its server
// process is frozen. It holds a partition up for one round trip, not for as long
// as a task may be worked on.
func TestConnectionThatSwallows(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	connect := func() *pgxpool.Pool {
		cfg, err := pgxpool.ParseConfig(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		cfg.MaxConns = 16
		cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // as for one just used
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

// freeze stops the server's side of a pool's idle connections until the test
// ends.
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

// A job that can't be applied ends failed, its account goes on, and the others
// of its partition never stood still.
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

// Accounts that share a task share no trouble: one is locked by somebody else,
// one has a job that Postgres refuses, one a job that is not there. In one turn
// the others are done, or have theirs and are named for the next.
func TestSharedTask(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t)}) // waits for locks as long as a worker's does
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := newSystem(t, pool, testenv.Redis(t))
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	type line struct {
		account ledger.Account
		jobs    []uuid.UUID
	}
	queued := func(amounts ...int64) (l line) {
		l.account = ledgertest.Account(t, s.pool, s.user, 0)
		for _, amount := range amounts {
			l.jobs = append(l.jobs, ledgertest.Job(t, s.pool, l.account, ledger.Deposit, amount))
		}
		return l
	}
	locked, refused := queued(1), queued(1, 13, 1)
	long, short, one := queued(slices.Repeat([]int64{1}, 150)...), queued(1, 1), queued(1)
	task := []uuid.UUID{uuid.New()}
	for _, line := range []line{locked, refused, long, short, one} {
		task = append(task, line.jobs[len(line.jobs)-1])
	}
	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it is over by then
	if _, err := lock.Exec(t.Context(), `SELECT FROM accounts WHERE id = $1 FOR UPDATE`, locked.account.ID); err != nil {
		t.Fatal(err)
	}

	var jobs []queue.Notification
	for _, id := range task {
		jobs = append(jobs, queue.Notification{JobID: id, Jobs: 1})
	}
	remaining, troubled, err := s.sweeper().Apply(t.Context(), jobs)
	if !worker.IsFailure(err) || !slices.Equal(idsOf(remaining), long.jobs[149:]) || !slices.Equal(idsOf(troubled), task[:3]) {
		t.Errorf("the first turn leaves %v, and %v in trouble, %v; want %v, %v and a refusal", remaining, troubled, err, long.jobs[149], task[:3])
	}
	left := map[int64]int{}
	rows, err := s.pool.Query(t.Context(), `SELECT account_id, count(*) FROM jobs WHERE status = 'queued' GROUP BY account_id`)
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
		t.Errorf("%d jobs of the long line are left of 150", got)
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
	for _, line := range []line{locked, refused, long, short, one} {
		s.inOrder(line.account, line.jobs)
	}
}

func idsOf(jobs []queue.Notification) (ids []uuid.UUID) {
	for _, n := range jobs {
		ids = append(ids, n.JobID)
	}
	return ids
}

// Stopping a worker in the middle of its work loses nothing.
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

// Two installations that share a Redis take each other's tasks and give them back:
// all jobs of both finish, and no task is archived.
func TestUnknownJobIsGivenBack(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	bothFinish(newSystem(t, testenv.Pool(t), shared), newSystem(t, testenv.Pool(t), shared))
}

// Two installations that share a Redis under different prefixes don't meet: no task of
// one is tried by the other.
func TestTwoInstallationsOnOneRedis(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	one := newSystemOf(t, testenv.Pool(t), shared, queue.Queues{Prefix: "one", Partitions: partitions})
	two := newSystemOf(t, testenv.Pool(t), shared, queue.Queues{Prefix: "two", Partitions: partitions})
	bothFinish(one, two)
	for _, s := range []*system{one, two} {
		inspector := asynq.NewInspectorFromRedisClient(s.queues.Only(s.redis))
		names, err := inspector.Queues()
		if err != nil || len(names) == 0 {
			t.Errorf("queues %v, %v; want some", names, err)
		}
		for _, name := range names {
			if info, err := inspector.GetQueueInfo(name); err != nil || info.FailedTotal > 0 || !strings.HasPrefix(name, s.queues.Prefix) {
				t.Errorf("queue %s of %s: %+v, %v; want none that failed", name, s.queues.Prefix, info, err)
			}
		}
	}
	keys, err := one.redis.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	shareable := regexp.MustCompile(`^(asynq:\{)?(one|two):|^asynq:(queues|servers|workers)|^asynq:\{\w+:\d+:`)
	for _, key := range keys {
		if !shareable.MatchString(key) {
			t.Errorf("key %s belongs to neither prefix", key)
		}
	}
}

// Of two installations that use the same queues the second one leaves them to the
// first, and reports it: the jobs of both finish, and none tries the other's tasks.
func TestTwoInstallationsSamePrefix(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	first, second := newInstallation(t, shared), newInstallation(t, shared)
	bothFinish(first, second)
	if first.queues.Owner.Err() != nil || !errors.Is(second.queues.Owner.Err(), queue.ErrOtherInstallation) {
		t.Errorf("the first reports %v, the second %v; want the second one's mix-up", first.queues.Owner.Err(), second.queues.Owner.Err())
	}
	inspector := asynq.NewInspectorFromRedisClient(first.redis)
	for partition := range partitions {
		if info, err := inspector.GetQueueInfo(queues.Name(partition)); err == nil && info.FailedTotal > 0 {
			t.Errorf("queue %s: %d tries failed, want none", info.Queue, info.FailedTotal)
		}
	}
	if err := first.redis.Del(t.Context(), queues.Prefix+":installation").Err(); err != nil { // an operator does
		t.Fatal(err)
	}
	second.queues.Owner.Check(t.Context())
	if err := second.queues.Owner.Err(); err != nil {
		t.Errorf("the mix-up is over, and the second reports %v", err)
	}
}

// newInstallation is a system whose database is another installation than the rest.
func newInstallation(t *testing.T, redisURL string) *system {
	t.Helper()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, `UPDATE installation SET id = gen_random_uuid()`)
	id, err := postgres.Installation(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	client, err := queue.Connect(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	own := queues
	own.Owner = queue.NewOwner(client, own.Prefix, id, slog.New(slog.DiscardHandler))
	own.Owner.Check(t.Context())
	return newSystemOf(t, pool, redisURL, own)
}

// bothFinish has two installations work, and all jobs of both finish.
func bothFinish(both ...*system) {
	const accounts = 40
	for _, s := range both {
		s.work()
	}
	for range accounts {
		for _, s := range both {
			account := ledgertest.Account(s.t, s.pool, s.user, 0)
			job := ledgertest.Job(s.t, s.pool, account, ledger.Deposit, 1)
			if s.queues.Owner.Err() == nil {
				s.enqueue(account, job)
			}
		}
	}
	for _, s := range both {
		s.drained()
		s.nothingArchived()
	}
}

func (s *system) nothingArchived() {
	s.t.Helper()
	keys, err := s.redis.Keys(s.t.Context(), "asynq:{*}:archived").Result()
	if err != nil || len(keys) > 0 {
		s.t.Errorf("archived tasks in %v, %v; want none", keys, err)
	}
}

// An API and a worker of different partitions: all jobs finish, in order, no task is
// left in Redis, and a worker with fewer partitions reports it.
func TestDifferingPartitions(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		api     int
		reports bool
	}{
		"APIHasMore": {api: 2 * partitions, reports: true},
		"APIHasLess": {api: partitions / 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			api := queue.NewClient(s.redis, queue.Queues{Prefix: queues.Prefix, Partitions: test.api}, slog.New(slog.DiscardHandler), func() {})
			const accounts, each = 40, 3
			began := time.Now()
			order := map[ledger.Account][]uuid.UUID{}
			for range accounts {
				account := ledgertest.Account(t, s.pool, s.user, 0)
				for range each {
					id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
					order[account] = append(order[account], id)
					if err := api.Enqueue(t.Context(), queue.Task{AccountID: account.ID, JobID: id}); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.work()
			s.drained()
			t.Logf("all finished after %v; to reach on an idle machine: 10 s", time.Since(began))
			for account, want := range order {
				s.inOrder(account, want)
			}
			testenv.Eventually(t, "no task to be left", func() bool {
				left, err := s.redis.Keys(t.Context(), "asynq:{*}:t:*").Result()
				return err == nil && len(left) == 0
			})
			s.nothingArchived()
			if err := s.server.ExtraQueues(); errors.Is(err, queue.ErrExtraQueues) != test.reports {
				t.Errorf("the worker reports %v; want a report: %t", err, test.reports)
			}
		})
	}
}
