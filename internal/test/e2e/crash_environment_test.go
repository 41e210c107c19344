package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// openingDeposit is the initial deposit of every account of these tests.
const openingDeposit = 500

// crashPartitions are few: there is one account, and there are many workers.
const crashPartitions = 2

// crashEnvironment is a system with one API and no worker, one account, and the outcomes
// of the requests so far if a single thread applied them.
type crashEnvironment struct {
	t *testing.T
	*system
	c   *client
	row crashRow

	number     string
	balance    int64
	seq        int64 // of the account's last transaction
	refuse     int64 // the amount that Postgres refuses
	requests   []*sentRequest
	unanswered *sentRequest   // whose process died before it answered
	batch      []*sentRequest // the same for a batch
	gate       pgx.Tx         // keeps the gate closed
}

// newCrashEnvironment sets up an environment on a database of its own.
func newCrashEnvironment(t *testing.T, row crashRow) *crashEnvironment {
	t.Helper()
	return setUpCrash(t, &system{t: t, databaseURL: testenv.Postgres(t)}, row)
}

func setUpCrash(t *testing.T, s *system, row crashRow) *crashEnvironment {
	t.Helper()
	s.redis = testenv.RedisServer(t)
	s.pool = s.connect()
	sc := &crashEnvironment{t: t, system: s, row: row, balance: openingDeposit, seq: 1}
	s.apis = []*process{startVariant(t, armed, "api", sc.env())}
	sc.c = newClient(t, s)
	t.Cleanup(sc.openGate)
	sc.number = sc.c.open(openingDeposit).Number
	return sc
}

func (sc *crashEnvironment) env() []string {
	return append(sc.system.env(), fmt.Sprint("QUEUE_PARTITIONS=", crashPartitions))
}

// next adds a request of the account, with the outcome that it must have.
func (sc *crashEnvironment) next(entry string, amount int64) *sentRequest {
	req := &sentRequest{jobRequest: jobRequest{account: sc.number, entry: entry, amount: amount, key: fmt.Sprint("crash-", len(sc.requests))}}
	sc.requests = append(sc.requests, req)
	switch {
	case amount == sc.refuse:
		req.want = "failed internal_error"
		return req
	case entry == "withdrawals" && sc.balance < amount:
		req.want = "rejected insufficient_funds"
		return req
	case entry == "withdrawals":
		sc.balance -= amount
	default:
		sc.balance += amount
	}
	sc.seq++
	req.want = fmt.Sprintf("succeeded seq %d balance %d", sc.seq, sc.balance)
	return req
}

// send sends a request to the API that is not killed.
func (sc *crashEnvironment) send(entry string, amount int64) {
	sc.t.Helper()
	req := sc.next(entry, amount)
	var err error
	if req.job, err = sc.c.settle(0, req.jobRequest); err != nil {
		sc.t.Fatal(err)
	}
}

// sendRequests sends n requests, one after another, that all succeed, while no worker runs.
// It awaits the task of each request before it sends the next: the notifier merges
// notifications of one account that wait together.
func (sc *crashEnvironment) sendRequests(n int) {
	sc.t.Helper()
	for i := range n {
		if i%2 == 0 {
			sc.send("deposits", int64(100+i))
		} else {
			sc.send("withdrawals", int64(50+i))
		}
		sc.awaitTasks(len(sc.requests))
	}
}

// neighbourly is the amount of each neighbour's request.
const neighbourly = 77

// sendNeighbour sends the only request of an account of the same partition.
func (sc *crashEnvironment) sendNeighbour() {
	sc.t.Helper()
	own := sc.partition(sc.number)
	number := sc.c.open(openingDeposit).Number
	for sc.partition(number) != own {
		number = sc.c.open(openingDeposit).Number
	}
	req := &sentRequest{
		jobRequest: jobRequest{account: number, entry: "deposits", amount: neighbourly, key: fmt.Sprint("crash-", len(sc.requests))},
		want:       fmt.Sprintf("succeeded seq 2 balance %d", openingDeposit+neighbourly),
	}
	sc.requests = append(sc.requests, req)
	var err error
	if req.job, err = sc.c.settle(0, req.jobRequest); err != nil {
		sc.t.Fatal(err)
	}
	sc.awaitTasks(len(sc.requests))
}

// followUp sends requests that must take effect after all that were before.
func (sc *crashEnvironment) followUp() {
	sc.t.Helper()
	sc.send("deposits", 11)
	sc.send("withdrawals", 1_000_000)
	sc.send("withdrawals", 5)
}

// sendUnanswered sends a job to a process that dies while it accepts the job. A response that comes
// nevertheless counts.
func (sc *crashEnvironment) sendUnanswered(dying *process) {
	sc.t.Helper()
	sc.unanswered = sc.next("deposits", 31)
	req := sc.unanswered.jobRequest
	status, answer, err := sc.c.request(sc.t.Context(), "http://"+dying.addr, http.MethodPost,
		"/v1/accounts/"+req.account+"/"+req.entry, req.key, map[string]any{"amount": req.amount})
	switch {
	case err != nil:
	case status != http.StatusAccepted:
		sc.t.Fatalf("%d %s, want a 202 or no answer", status, answer)
	default:
		if err := json.Unmarshal(answer, &sc.unanswered.job); err != nil {
			sc.t.Fatal(err)
		}
	}
}

// sendUnansweredBatch is sendUnanswered for a batch.
func (sc *crashEnvironment) sendUnansweredBatch(dying *process) {
	sc.t.Helper()
	sc.batch = []*sentRequest{sc.next("deposits", 31), sc.next("withdrawals", 1_000_000), sc.next("withdrawals", 17)}
	status, answer, err := sc.c.sendBatch(sc.t.Context(), "http://"+dying.addr, sc.batchRequests())
	if err == nil && status != http.StatusAccepted {
		sc.t.Fatalf("%d %s, want a 202 or no answer", status, answer)
	}
}

func (sc *crashEnvironment) batchRequests() (requests []jobRequest) {
	for _, req := range sc.batch {
		requests = append(requests, req.jobRequest)
	}
	return requests
}

// sendAgain sends the unanswered request or batch to another API. The response must name each job
// that was committed or returned before.
func (sc *crashEnvironment) sendAgain() {
	sc.t.Helper()
	switch {
	case sc.unanswered != nil:
		committed := sc.committed(sc.unanswered)
		again, err := sc.c.settle(0, sc.unanswered.jobRequest)
		if err != nil {
			sc.t.Fatal(err)
		}
		sc.answered(sc.unanswered, committed, again)
	case sc.batch != nil:
		var committed []string
		for _, req := range sc.batch {
			committed = append(committed, sc.committed(req))
		}
		again, err := sc.c.settleBatch(0, sc.batchRequests())
		if err != nil || len(again) != len(sc.batch) {
			sc.t.Fatal(again, err)
		}
		for i, req := range sc.batch {
			sc.answered(req, committed[i], again[i])
		}
	}
}

// committed returns the id of the job that the request's key has made; empty for none.
func (sc *crashEnvironment) committed(req *sentRequest) (id string) {
	sc.t.Helper()
	err := sc.pool.QueryRow(sc.t.Context(), `SELECT id::text FROM jobs WHERE idempotency_key = $1`, req.key).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		sc.t.Fatal(err)
	}
	return id
}

// answered keeps the job that the request was answered with when it was sent again.
func (sc *crashEnvironment) answered(req *sentRequest, committed string, again jobAnswer) {
	sc.t.Helper()
	for _, before := range []string{committed, req.job.ID} {
		if before != "" && before != again.ID {
			sc.t.Errorf("key %s names job %s, and then %s", req.key, before, again.ID)
		}
	}
	req.job = again
}

// open opens an account under a key, and returns its number.
func (sc *crashEnvironment) open(api string) (number string, err error) {
	status, answer, err := sc.c.request(sc.t.Context(), api, http.MethodPost, "/v1/accounts", "opening",
		map[string]any{"initial_deposit": openingDeposit})
	if err != nil {
		return "", err
	}
	var opened account
	if err := json.Unmarshal(answer, &opened); err != nil || status != http.StatusCreated || opened.Balance != openingDeposit {
		return "", fmt.Errorf("opening: %d %s, %w", status, answer, err)
	}
	return opened.Number, nil
}

func (sc *crashEnvironment) numbersOpened() []string {
	sc.t.Helper()
	rows, _ := sc.pool.Query(sc.t.Context(), `SELECT number FROM accounts WHERE open_key = 'opening'`) // CollectRows returns its error
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		sc.t.Fatal(err)
	}
	return numbers
}

// left checks the jobs in Postgres and the tasks in Redis.
func (sc *crashEnvironment) left(jobs string, tasks int) {
	sc.t.Helper()
	if got := sc.jobs(); got != jobs {
		sc.t.Errorf("left %s, want %s", got, jobs)
	}
	if got := sc.tasks(); tasks != anyNumber && got != tasks {
		sc.t.Errorf("left %d tasks, want %d", got, tasks)
	}
}

// becomes waits until Postgres holds these jobs.
func (sc *crashEnvironment) becomes(jobs string) {
	sc.t.Helper()
	testenv.Eventually(sc.t, jobs, func() bool { return sc.jobs() == jobs })
}

// jobs returns the states of all jobs, in the order of their accepts.
func (sc *crashEnvironment) jobs() string {
	sc.t.Helper()
	const sql = `SELECT status || CASE WHEN attempts > 0 THEN ' after ' || attempts || ' attempts' ELSE '' END FROM job_states ORDER BY position`
	rows, _ := sc.pool.Query(sc.t.Context(), sql) // CollectRows returns its error
	states, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		sc.t.Fatal(err)
	}
	if len(states) == 0 {
		return "none"
	}
	var runs []string
	for first, i := 0, 1; i <= len(states); i++ {
		if i == len(states) || states[i] != states[first] {
			runs = append(runs, fmt.Sprintf("%d %s", i-first, states[first]))
			first = i
		}
	}
	return strings.Join(runs, ", ")
}

// tasks counts the tasks in Redis, pending or active, and the notifications.
func (sc *crashEnvironment) tasks() (n int) {
	sc.t.Helper()
	sc.withRedis(func(r *redis.Client) error {
		keys, err := r.Keys(sc.t.Context(), "asynq:{"+queues.Prefix+":tx:*}:t:*").Result()
		n = len(keys)
		lists, listErr := r.Keys(sc.t.Context(), queues.Prefix+":notified:*").Result()
		for _, list := range lists {
			n += int(r.LLen(sc.t.Context(), list).Val())
		}
		return errors.Join(err, listErr)
	})
	return n
}

// awaitTasks waits until there are n tasks.
func (sc *crashEnvironment) awaitTasks(n int) {
	sc.t.Helper()
	testenv.Eventually(sc.t, fmt.Sprint(n, " tasks"), func() bool { return sc.tasks() == n })
}

// enqueueLast enqueues a task for the newest job.
func (sc *crashEnvironment) enqueueLast() {
	sc.t.Helper()
	last := sc.requests[len(sc.requests)-1]
	task := queue.Task{JobID: uuid.MustParse(last.job.ID), AccountID: sc.accountID(last.account)}
	sc.withQueue(func(client *queue.Client) error { return client.Enqueue(sc.t.Context(), task) })
}

// enqueueEach enqueues a task for each request, as sweeps do.
func (sc *crashEnvironment) enqueueEach() {
	sc.t.Helper()
	flushAll(sc.t, sc.system)
	sc.withQueue(func(client *queue.Client) error {
		for _, req := range sc.requests {
			task := queue.Task{JobID: uuid.MustParse(req.job.ID), AccountID: sc.accountID(req.account)}
			if err := client.Enqueue(sc.t.Context(), task); err != nil {
				return err
			}
		}
		return nil
	})
}

// enqueueShared enqueues one task for the newest jobs of all accounts, as an API does that
// is notified of them together.
func (sc *crashEnvironment) enqueueShared() {
	sc.t.Helper()
	now, cancel := context.WithCancel(sc.t.Context())
	cancel()
	var ids []int64
	for _, req := range sc.requests {
		ids = append(ids, sc.accountID(req.account))
	}
	sc.withQueue(func(client *queue.Client) error {
		for i, req := range sc.requests {
			client.Notify(ids[i], int64(i), uuid.MustParse(req.job.ID), 1, nil)
		}
		return client.Run(now) // what is there already
	})
	sc.awaitTasks(1)
}

func (sc *crashEnvironment) withQueue(do func(*queue.Client) error) {
	sc.t.Helper()
	sc.withRedis(func(r *redis.Client) error {
		return do(queue.NewClient(r, queue.Queues{Prefix: queues.Prefix, Partitions: crashPartitions}, slog.New(slog.DiscardHandler), func() {}))
	})
}

func (sc *crashEnvironment) accountID(number string) (id int64) {
	sc.t.Helper()
	if err := sc.pool.QueryRow(sc.t.Context(), `SELECT id FROM accounts WHERE number = $1`, number).Scan(&id); err != nil {
		sc.t.Fatal(err)
	}
	return id
}

func (sc *crashEnvironment) partition(number string) int {
	sc.t.Helper()
	return queue.Partition(sc.accountID(number), crashPartitions)
}

func (sc *crashEnvironment) withRedis(do func(*redis.Client) error) {
	sc.t.Helper()
	r := sc.redisClient()
	defer r.Close() //nolint:errcheck // nothing is pending on it; it is called often
	if err := do(r); err != nil {
		sc.t.Fatal(err)
	}
}

func (sc *crashEnvironment) exec(sql string) {
	sc.t.Helper()
	ledgertest.Exec(sc.t, sc.pool, sql)
}

// Gates: where a trigger holds a statement inside Postgres.
const (
	insertDone = `AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW`         // all but committed
	lockHeld   = `BEFORE UPDATE ON accounts FOR EACH STATEMENT`                            // the account is locked, nothing written
	applyDone  = `AFTER INSERT ON transactions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW` // all but committed
)

// closeGate holds every statement that comes to the trigger until openGate. Neither a time-out nor
// a cancel ends a held statement: the gate stands for a step that takes long on a slow machine.
// The serving statement_timeout would: it is short, so that another worker can take over.
func (sc *crashEnvironment) closeGate(trigger string) {
	sc.t.Helper()
	sc.exec(`CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
		BEGIN
			LOOP
				BEGIN
					PERFORM pg_advisory_xact_lock_shared(1, 1);
					RETURN NEW;
				EXCEPTION WHEN query_canceled THEN NULL; -- OTHERS would not catch it
				END;
			END LOOP;
		END $$`)
	kind := "TRIGGER"
	if strings.Contains(trigger, "DEFERRED") {
		kind = "CONSTRAINT TRIGGER"
	}
	sc.exec(`CREATE ` + kind + ` gate ` + trigger + ` EXECUTE FUNCTION gate()`)
	var err error
	if sc.gate, err = sc.pool.Begin(sc.t.Context()); err != nil {
		sc.t.Fatal(err)
	}
	if _, err := sc.gate.Exec(sc.t.Context(), `SELECT pg_advisory_xact_lock(1, 1)`); err != nil {
		sc.t.Fatal(err)
	}
}

// openGate releases the held statements, if there is a gate.
func (sc *crashEnvironment) openGate() {
	if sc.gate != nil {
		_ = sc.gate.Rollback(context.WithoutCancel(sc.t.Context())) // done, or gone with its server
		sc.gate = nil
	}
}

// held waits until so many statements wait, at the gate or for a statement at the gate.
func (sc *crashEnvironment) held(n int) {
	sc.t.Helper()
	const sql = `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`
	testenv.Eventually(sc.t, fmt.Sprint(n, " statements held in Postgres"), func() bool {
		var waiting int
		if err := sc.pool.QueryRow(sc.t.Context(), sql).Scan(&waiting); err != nil {
			sc.t.Fatal(err)
		}
		return waiting >= n
	})
}

// check compares everything with the model.
func (sc *crashEnvironment) check() {
	sc.t.Helper()
	byAccount := map[string][]*sentRequest{}
	for _, req := range sc.requests {
		byAccount[req.account] = append(byAccount[req.account], req)
	}
	for _, requests := range byAccount {
		compare(sc.c, requests)
	}
	if sc.refuse == 0 {
		sc.verify()
		return
	}
	want := fmt.Sprintf("1 failed after %d attempts, ", ledger.MaxAttempts)
	if got := sc.jobs(); !strings.HasPrefix(got, want) || strings.Count(got, "attempts") != 1 {
		sc.t.Errorf("jobs ended %s, want %s and none of the others refused", got, want)
	}
	ledgertest.Check(sc.t, sc.pool)
}
