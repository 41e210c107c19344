package mutants_test

// mutation removes a guard of a promise.
type mutation struct {
	name     string
	promise  string // that it breaks
	edits    []edit
	checkers []string // arguments of go test; each must then fail, every time
}

// edit replaces a text that stands exactly once in its file. The texts are short, so
// that changes around them do not matter.
type edit struct{ file, from, to string }

// The files of the guards.
const (
	accept    = "internal/job/accept.go"
	archive   = "internal/job/archive.go"
	batches   = "internal/job/batch.go"
	backlog   = "internal/job/backlog.go"
	accounts  = "internal/ledger/accounts.go"
	apply     = "internal/ledger/apply.go"
	pipeline  = "internal/ledger/pipeline.go"
	attempts  = "internal/ledger/attempts.go"
	operator  = "internal/ledger/operator.go"
	verifying = "internal/ledger/walks.go"
	verified  = "internal/ledger/round.go"
	granting  = "internal/test/e2e/roles_test.go" // reads deploy/postgres/roles.sql, which no build does
	open      = "internal/postgres/postgres.go"
	pooler    = "internal/postgres/pooler.go"
	pgErrors  = "internal/postgres/errors.go"
	schema    = "migrations/00001_schema.sql"
	applying  = "migrations/00002_apply_job.sql"
	accepts   = "migrations/00003_accept_jobs.sql"
	batchSQL  = "migrations/00004_accept_batch.sql"
	balances  = "internal/statement/statement.go"
	sweep     = "internal/worker/sweep.go"
	scanning  = "internal/worker/scan.go"
	stalled   = "internal/worker/stalled.go"
	direct    = "internal/worker/direct.go"
	work      = "internal/worker/worker.go"
	handler   = "internal/worker/apply.go"
	batching  = "internal/worker/batcher.go"
	notifier  = "internal/queue/notifier.go"
	wakeup    = "internal/queue/wakeup.go"
	pubsub    = "internal/queue/events.go"
	tracing   = "internal/api/trace.go"
	finishing = "internal/worker/finish.go"
	masters   = "internal/queue/master.go"
	notices   = "internal/queue/notification.go"
	pending   = "internal/queue/pending.go"
	serving   = "internal/queue/server.go"
	opsTokens = "internal/ops/token.go"
	watching  = "internal/queue/watch.go"
	edge      = "internal/api/api.go"
	problems  = "internal/api/problem.go"

	batchEdge = "internal/api/batch.go"

	hub      = "internal/finished/hub.go"
	waiting  = "internal/finished/wait.go"
	ends     = "internal/job/finished.go"
	limits   = "internal/api/limits.go"
	shed     = "internal/api/shed.go"
	settling = "internal/limit/settle.go"
	gate     = "internal/postgres/gate.go"
	shown    = "internal/postgres/shown.go"
	jobs     = "internal/job/job.go"
	jobLists = "internal/job/list.go"
	replica  = "internal/statement/replica.go"
	events   = "internal/event/event.go"
	streams  = "internal/api/streams.go"
	opening  = "internal/api/events.go"
	sessions = "internal/auth/sessions.go"
	change   = "internal/auth/change.go"
	tokens   = "internal/auth/tokens.go"
	sights   = "internal/auth/auth.go"
	decode   = "internal/api/decode.go"
	queries  = "internal/api/query.go"

	files    = "internal/config/files.go"
	starting = "internal/boot/boot.go"

	workerHealth = "internal/worker/health.go"
	probing      = "internal/queue/probe.go"
	connecting   = "internal/queue/connect.go"
	gauges       = "internal/ops/gauge.go"
	applyRights  = "internal/ledger/check.go"
	health       = "internal/boot/health.go"

	lines    = "internal/ops/bound.go"
	outages  = "internal/ops/outage.go"
	requests = "internal/api/log.go"
	headers  = "internal/queue/task.go"
)

// The promises, and the limits.
const (
	durable    = "a 202 is durable"
	once       = "a job finishes exactly once"
	inOrder    = "jobs take effect in order"
	balanced   = "a balance equals its history"
	alone      = "each job has its own transaction"
	disposable = "Redis is disposable"
	ownTrouble = "an account's trouble stays its own"
	keyForGood = "a key is an answer for good"
	stays      = "what a client was told never changes"
	described  = "an answer is as openapi.yaml says, and a refused request moves no money"
	owned      = "what is another's does not exist"
	knownUser  = "a request is its user's"
	bounded    = "no client asks for more than its limits"
	deployed   = "a process starts from what it is given, and says what it waits for"
	seen       = "what keeps the processes from their work is seen"
	observed   = "an operator sees what happens, and no secret"
)

// mutations are the changes that a test must notice. By chance a mutant may do no harm (a
// plan that happens to sort, an index that happens to refuse), so each mutation does harm
// whenever its guard would have mattered.
var mutations = []mutation{
	{
		"answer, then insert", durable,
		[]edit{{accept, `accepted, err := a.insert(ctx, batch)`, `for _, r := range batch {
			r.result <- result{job: Job{ID: r.id, Account: r.Account, Type: r.Type, Amount: r.Amount, Status: Queued}}
		}
		accepted, err := a.insert(ctx, batch)`}},
		[]string{
			"-run=^TestAcceptReturnsAfterTheCommit$ ./internal/job",
			"-run=^TestAcceptWhilePostgresIsDown$ ./internal/job",
			"-run=^TestNoAnswerBeforeTheCommit$ ./internal/test/e2e",
		},
	},
	{
		"behind a pooler a session decides whether an accept is flushed", durable,
		[]edit{{accept, `$10::bigint[], $11) accepted, ` + "` + postgres.DurableSQL", `$10::bigint[], $11) accepted` + "`"}},
		[]string{"-run=^TestAcceptedSurvivesACrash_Pooler$ ./internal/job"},
	},
	{
		"behind a pooler a session decides whether applies are flushed", durable,
		[]edit{{pipeline, `applyPooledSQL = applySQL + ` + "` FROM ` + postgres.DurableSQL", `applyPooledSQL = applySQL`}},
		[]string{"-run=^TestApplyFlushesOnceABatch_Pooler$/^Several$ ./internal/ledger"},
	},
	{
		"behind a pooler a session decides whether a transaction is flushed", durable,
		[]edit{{pooler, "return `BEGIN; SET LOCAL synchronous_commit = ` + durable", `_ = durable
	return "BEGIN"`}},
		[]string{"-run=^TestPoolerCommitsDurably$ ./internal/postgres"},
	},
	{
		"behind a pooler statements keep names", durable,
		[]edit{{pooler, `cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe`, `_ = pgx.QueryExecModeCacheDescribe`}},
		[]string{"-run=^TestPoolerSharesSessions$ ./internal/postgres"},
	},
	{
		"insert, answer, then commit", durable,
		[]edit{{accept, `returned, _ := a.pool.Query(ctx,`, `tx, err := a.pool.Begin(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { go tx.Commit(context.WithoutCancel(ctx)) }()
		returned, _ := tx.Query(ctx,`}},
		[]string{"-run=^TestAcceptReturnsAfterTheCommit$ ./internal/job"},
	},
	{
		"a server may answer before its disk", durable,
		[]edit{{open, `if err := params.secure(ctx, conn); err != nil || cfg.Direct == "" {`, `if cfg.Direct == "" {
			return nil
		}
		if err := params.secure(ctx, conn); err != nil {`}},
		[]string{"-run=^TestOpenDemandsDurability$ ./internal/postgres"},
	},
	{
		"no lock on the account", once,
		[]edit{{applying, ` FOR NO KEY UPDATE;`, `;`}},
		[]string{"-run=^TestApplyAfterAnUnseenJob$ ./internal/ledger"},
	},
	{
		"a job that is posted stays queued", once,
		[]edit{{schema, `DELETE FROM %1$s.queue WHERE`, `PERFORM FROM %1$s.queue WHERE`}},
		[]string{"-run=^TestApplyInOrderUpToTheNamedJob$ ./internal/ledger", machine},
	},
	{
		"a job that is not queued is posted", once,
		[]edit{{schema, `IF NOT FOUND THEN
            RAISE EXCEPTION '%% on %%: its job is not queued'`, `IF false THEN
            RAISE EXCEPTION '%% on %%: its job is not queued'`}},
		[]string{refuses("RejectedJobRecorded"), refuses("RecordedAtAnotherPosition"), refuses("RecordedAsAnotherJob")},
	},
	{
		"a job that is not queued is rejected or fails", once,
		[]edit{{schema, `job_id = NEW.job_id;
    IF NOT FOUND THEN`, `job_id = NEW.job_id;
    IF false THEN`}},
		[]string{refuses("SucceededJob(Rejected|Failed)"), refuses("RejectedJobFailed")},
	},
	{
		"a job enters or leaves the queue by itself", once,
		[]edit{{schema, `IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.<) 2 THEN`, `IF false THEN`}},
		[]string{refuses("SucceededJobQueuedAgain"), refuses("QueuedJobTakenOut")},
	},
	{
		"a rejection is taken back", once,
		[]edit{{schema, `IF EXISTS (SELECT FROM jobs WHERE id = OLD.job_id) OR`, `IF false AND`}},
		[]string{refuses("RejectedJobQueuedAgain")},
	},
	{
		"a role that was granted it ends jobs and queues them", balanced,
		[]edit{
			{schema, `ALTER TABLE rejections ENABLE ROW LEVEL SECURITY;`, ``},
		},
		[]string{"-run=^TestRoleWithEveryGrant$ ./internal/ledger"},
	},
	{
		"the oldest job is looked for before the lock is there", once,
		[]edit{
			{
				applying, `    SELECT balance,`,
				`    SELECT job_id, position, pg_current_snapshot() INTO job, at, seen FROM queue
				WHERE account_id = account AND position <= up_to ORDER BY position LIMIT 1;
				SELECT balance,`,
			},
			{
				applying, `    SELECT job_id, position, pg_current_snapshot() INTO job, at, seen
    FROM queue
    WHERE account_id = account AND position > done AND position <= up_to
    ORDER BY position
    LIMIT 1;
    IF NOT FOUND THEN`, `    IF job IS NULL THEN`,
			},
		},
		[]string{"-run=^TestApplyAfterAWait$ ./internal/ledger"},
	},
	{
		"a task whose own job is finished leaves older jobs", disposable,
		[]edit{{applying, `position <= up_to LIMIT 1;
        IF NOT FOUND THEN`, `position <= up_to LIMIT 1;
        IF true THEN`}},
		[]string{"-run=^TestApplyRefusedJob$ ./internal/ledger"},
	},
	{
		"a job may be posted twice", once,
		[]edit{
			{schema, `CREATE UNIQUE INDEX transactions_jobs`, `CREATE INDEX transactions_jobs`},
		},
		[]string{"-run=^TestPositionsAreUnique$ ./internal/ledger"},
	},
	{
		"a finished job may change", once,
		[]edit{{schema, `BEFORE UPDATE OR TRUNCATE ON rejections`, `BEFORE TRUNCATE ON rejections`}},
		[]string{refuses("RejectionRewritten")},
	},
	{
		"jobs that are not committed are returned", once,
		[]edit{
			{pipeline, `applied = append(applied, result.applied...)`, ``},
			{
				pipeline, `result, err := readResult(types, pipeline)`,
				`result, err := readResult(types, pipeline)
				applied = append(applied, result.applied...)`,
			},
		},
		[]string{"-run=^TestApplyReturnsNoJobWithARefusedCommit$ ./internal/ledger"},
	},
	{
		"any job may be replayed", once,
		[]edit{{operator, `if err == nil && !replayed {`, `if false && !replayed {`}},
		[]string{"-run=^TestReplay$ ./internal/ledger"},
	},

	{
		"the newest job first", inOrder,
		[]edit{{applying, `ORDER BY position`, `ORDER BY position DESC`}},
		[]string{"-run=^TestApplyInOrderUpToTheNamedJob$ ./internal/ledger", machine, "-run=^TestSequentialClients/Undisturbed$ ./internal/test/e2e"},
	},
	{
		"jobs after the task's too", inOrder,
		[]edit{{applying, `AND position > done AND position <= up_to
    ORDER`, `AND position > done
    ORDER`}},
		[]string{"-run=^TestApplyNothingBehindTheNamedJob$ ./internal/ledger"},
	},
	{
		"connections draw positions ahead", inOrder,
		[]edit{{schema, `job_positions AS bigint CACHE 1;`, `job_positions AS bigint CACHE 20;`}},
		[]string{"-run=^TestPositionsAreNotCached$ ./internal/ledger", "-run=^TestAcceptOrder$ ./internal/job"},
	},
	{
		"a position may change", inOrder,
		[]edit{{schema, `BEFORE UPDATE OF account_id, position, job_id ON queue`, `BEFORE UPDATE OF account_id, job_id ON queue`}},
		[]string{refuses("QueuedJobMoved")},
	},
	{
		"what was asked may change", inOrder,
		[]edit{{schema, `CREATE TRIGGER jobs_terms BEFORE UPDATE ON jobs`, `CREATE TRIGGER jobs_terms BEFORE UPDATE OF type ON jobs`}},
		[]string{refuses("(Amount|Position)Changed")},
	},

	{
		"an apply does not look at the account's status", balanced,
		[]edit{{applying, ` AND account_is = 'open'`, ``}},
		[]string{"-run=^TestApplyByStatus$ ./internal/ledger"},
	},
	{
		"the balance of a frozen account moves", balanced,
		[]edit{{schema, `AND NEW.status OPERATOR(pg_catalog.=) 'open'`, ``}},
		[]string{refuses("BalanceOfAFrozenAccount")},
	},
	{
		"a status changes without an action", balanced,
		[]edit{{schema, `WHEN (NEW.status IS DISTINCT FROM OLD.status AND pg_trigger_depth() = 0)`, `WHEN (false)`}},
		[]string{refuses("StatusByItself")},
	},
	{
		"a closed account opens again", balanced,
		[]edit{{schema, `ELSIF was = 'closed' THEN`, `ELSIF false THEN`}},
		[]string{refuses("ClosedAccount(Opened|Frozen)"), "-run=^TestSetStatus$ ./internal/ledger"},
	},
	{
		"a freeze is dated before what it waited for", balanced,
		[]edit{{schema, `WHERE id = NEW.account_id FOR NO KEY UPDATE;`, `WHERE id = NEW.account_id;`}},
		[]string{"-run=^TestFreezeWaitsForAnApply$ ./internal/ledger"},
	},
	{
		"an action is dated by the clock alone", balanced,
		[]edit{{schema, `NEW.at := greatest(clock_timestamp(), last + interval '1 microsecond');`, `NEW.at := clock_timestamp();`}},
		[]string{"-run=^TestActionsAreLaterThanTheHistory$ ./internal/ledger"},
	},
	{
		"a transaction is dated before the action before it", balanced,
		[]edit{{schema, `SET status = becomes, answered_until = NEW.at`, `SET status = becomes`}},
		[]string{"-run=^TestActionsAreLaterThanTheHistory$ ./internal/ledger"},
	},
	{
		"a replay leaves no row", once,
		[]edit{{schema, `FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse('a failed job`, `FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION refuse('a failed job`}},
		[]string{refuses("FailedJobReplayedByItself"), "-run=^TestRoleWithEveryGrant$ ./internal/ledger"},
	},
	{
		"the record of an action changes", balanced,
		[]edit{{schema, `BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions`, `BEFORE TRUNCATE ON operator_actions`}},
		[]string{refuses("Action(Changed|Deleted)")},
	},
	{
		"a serving process unfreezes accounts", balanced,
		[]edit{{granting, `string(roles)`, `strings.ReplaceAll(string(roles), "ON public.operator_actions TO passbook_operator;",
		"ON public.operator_actions TO passbook_operator, passbook_serving;")`}},
		[]string{"-run=^TestServingRole$ ./internal/test/e2e"},
	},
	{
		"a closed account takes jobs", balanced,
		[]edit{{accepts, ` AND NOT closed AND remaining`, ` AND remaining`}},
		[]string{"-run=^TestAcceptByStatus$ ./internal/job", "-run=^TestAcceptWhileTheAccountIsClosed$ ./internal/job"},
	},
	{
		"a closed account takes batches", balanced,
		[]edit{{batchSQL, ` AND NOT closed AND cardinality`, ` AND cardinality`}},
		[]string{"-run=^TestAcceptBatchByStatus$ ./internal/job"},
	},
	{
		"verify does not compare a status with its actions", balanced,
		[]edit{{verifying, `WHEN walked.status::text <> coalesce(made.status, 'open')`, `WHEN false`}},
		[]string{"-run=^TestVerifyFinds$/^(StatusWithoutAnAction|ActionWithoutItsStatus)$ ./internal/ledger"},
	},
	{
		"the read token changes queues", owned,
		[]edit{{opsTokens, `&& !onlyReads(r):`, `&& false:`}},
		[]string{"-run=^TestReadToken$ ./internal/ops"},
	},
	{
		"a pause is not noticed", disposable,
		[]edit{{watching, `if pause.Val() > 0 {`, `if pause.Val() < 0 {`}},
		[]string{"-run=^TestPausesAreReported$ ./internal/queue"},
	},
	{
		"verify does not look for jobs without an outcome", balanced,
		[]edit{{verifying, `WHEN found.outcomes IS NULL`, `WHEN false`}},
		[]string{"-run=^TestVerifyFinds$/^Missing(Transaction|Rejection)$ ./internal/ledger"},
	},
	{
		"a round follows a busy account without an end", balanced,
		[]edit{{verified, `last.Position > r.Bound {`, `false {`}},
		[]string{"-run=^TestRoundUnderLoad$ ./internal/ledger"},
	},
	{
		"a withdrawal takes what is not there", balanced,
		[]edit{{applying, `IF total BETWEEN 0 AND max_balance`, `IF total <= max_balance`}},
		[]string{"-run=^TestApply$ ./internal/ledger"},
	},
	{
		"a balance may pass the limit", balanced,
		[]edit{{applying, `BETWEEN 0 AND max_balance`, `BETWEEN 0 AND 2 * max_balance`}},
		[]string{"-run=^TestApply$ ./internal/ledger"},
	},
	{
		"a balance may be negative", balanced,
		[]edit{{schema, `CREATE DOMAIN balance AS bigint CHECK (VALUE BETWEEN 0 AND`, `CREATE DOMAIN balance AS bigint CHECK (VALUE <`}},
		[]string{refuses("NegativeBalance")},
	},
	{
		"a balance moves without its history", balanced,
		[]edit{{schema, `IF NOT (NEW.last_seq OPERATOR`, `IF false AND NOT (NEW.last_seq OPERATOR`}},
		[]string{refuses("BalanceWithoutHistory")},
	},
	{
		"a posting may stand alone, and for more than there was", balanced,
		[]edit{
			{schema, `ELSIF NOT (NEW.position IS NULL`, `ELSIF false AND NOT (NEW.position IS NULL`},
			{schema, `IF NOT (NEW.type OPERATOR`, `IF false AND NOT (NEW.type OPERATOR`},
		},
		[]string{refuses("TransactionWithoutJob"), refuses("NegativeBefore")},
	},
	{
		"a history may begin before its first transaction", balanced,
		[]edit{{schema, `IF NOT (NEW.seq OPERATOR(pg_catalog.>=) 1) THEN`, `IF false THEN`}},
		[]string{refuses("TransactionBeforeTheFirst")},
	},
	{
		"history may be rewritten", balanced,
		[]edit{{schema, `BEFORE UPDATE OR DELETE OR TRUNCATE ON transactions`, `BEFORE TRUNCATE ON transactions`}},
		[]string{refuses("History(Changed|Deleted)")},
	},
	{
		"time goes back within an account", balanced,
		[]edit{{applying, `greatest(clock_timestamp(), job_created, last + interval '1 microsecond')`, `clock_timestamp()`}},
		[]string{"-run=^TestApplyTimeNeverGoesBack$ ./internal/ledger"},
	},
	{
		"a transaction is stamped before a balance that was answered", stays,
		[]edit{{applying, `greatest(last_at, answered_until)`, `last_at`}},
		[]string{"-run=^TestBalance_ClockGoesBack$ ./internal/statement"},
	},
	{
		"a balance is answered beside an open apply", stays,
		[]edit{{balances, `case err == nil && !stays:`, `case err == nil && !stays && conn == nil:`}},
		[]string{"-run=^TestBalance_WhileAnApplyIsOpen$ ./internal/statement"},
	},

	{
		"one transaction a batch", alone,
		[]edit{
			{pipeline, `"chain", ` + "`COMMIT AND CHAIN`", `"chain", ` + "`SAVEPOINT chained`"},
			{pipeline, `err != nil || tag.String() == "COMMIT"`, `err != nil || tag.String() != ""`},
		},
		[]string{"-run=^TestApplyRefusedJob$ ./internal/ledger"},
	},
	{
		"a wild count of attempts overflows", ownTrouble,
		[]edit{{attempts, `least(queue.attempts, 1000) + 1`, `queue.attempts + 1`}},
		[]string{"-run=^TestApplyRefusedJobWithAWildCount$ ./internal/ledger"},
	},
	{
		"positions above the snapshot's xmax count as later ones", inOrder,
		[]edit{{applying, `settler := pg_current_xact_id();`, `settler := pg_snapshot_xmax(seen);`}},
		[]string{"-run=^TestApplyFindsAPositionDrawnInBetween$ ./internal/ledger"},
	},
	{
		"a page of the sweep is in no order", disposable,
		[]edit{{backlog, "\n	ORDER BY page.account_id`", "`"}},
		[]string{"-run=^TestBacklogPagesSeeEveryAccount$ ./internal/job"},
	},
	{
		"a queued job is never confirmed", stays,
		[]edit{{jobLists, `queuedBy("xmin")`, `"NULL::xid"`}},
		[]string{"-run=^TestGate_EveryRoute$ ./internal/api"},
	},
	{
		"an event is sent before it is durable", stays,
		[]edit{{streams, `return pages, s.gate.Wait(ctx, shown)`, `_ = shown
	return pages, nil`}},
		[]string{"-run=^TestEvents_Unflushed$ ./internal/api"},
	},
	{
		"a stream begins after a transaction that is not durable", stays,
		[]edit{{opening, `return a.cfg.Gate.Wait(reading, shown)`, `_ = shown
	return nil`}},
		[]string{"-run=^TestGate_EveryRoute$ ./internal/api"},
	},
	{
		"a rejection leaves the time of what follows as it was", "a stream misses no event",
		[]edit{{applying, `answered_until = finished, done_to`, `done_to`}},
		[]string{"-run=^TestRead$ ./internal/event"},
	},
	{
		"a failure leaves the time of what follows as it was", "a stream misses no event",
		[]edit{{schema, `NEW.finished_at := coalesce(stamped, NEW.finished_at);`, ``}},
		[]string{"-run=^TestRead$ ./internal/event"},
	},
	{
		"a stream passes over what is archived", "a stream misses no event",
		[]edit{{events, `isNew + ` + "` AND status = 'rejected'`", `isNew + ` + "` AND status = 'succeeded'`"}},
		[]string{"-run=^TestRead$/^Archived$ ./internal/event"},
	},
	{
		"a stream sends a rejection again and again", "a stream misses no event",
		[]edit{{streams, `s.at.After = page.Next`, `s.at.After.Seq = page.Next.Seq`}},
		[]string{"-run=^TestEvents$ ./internal/api"},
	},
	{
		"looks that do not fit into a statement are dropped", "a stream misses no event",
		[]edit{{streams, `s.looks = s.looks[n:]`, `s.looks = nil`}},
		[]string{"-run=^TestEvents_ManyLooks$ ./internal/api"},
	},
	{
		"a damaged row ends the streams of others", ownTrouble,
		[]edit{{events, `r.Seq == nil && r.AcceptedAt == nil }`, `r.Seq == nil && r.AcceptedAt == nil && false }`}},
		[]string{"-run=^TestRead_Damaged$ ./internal/event"},
	},
	{
		"a stream outlives its session", owned,
		[]edit{{events, `SELECT revoked_at IS NULL FROM sessions`, `SELECT true FROM sessions`}},
		[]string{"-run=^TestRead_Over$/^Revoked$ ./internal/event", "-run=^TestEvents_EndWithTheSession$ ./internal/api"},
	},
	{
		"a stream follows the account of another", owned,
		[]edit{{events, `account.number = stream.number AND account.user_id IS NOT DISTINCT FROM stream.user_id`, `account.number = stream.number`}},
		[]string{"-run=^TestRead_Over$/^AnothersAccount$ ./internal/event"},
	},
	{
		"a stream begins in the account of another", owned,
		[]edit{{events, `FROM accounts WHERE user_id = $1 AND number = $2`, `FROM accounts WHERE $1 IS NOT NULL AND number = $2`}},
		[]string{"-run=^TestBegin$ ./internal/event"},
	},
	{
		"a stream outlives its access token", owned,
		[]edit{{streams, `context.WithTimeout(all.ctx, s.life)`, `context.WithCancel(all.ctx)`}},
		[]string{"-run=^TestEvents_EndWithTheToken$ ./internal/api"},
	},
	{
		"a client that does not read keeps its stream", "streams are bounded",
		[]edit{{streams, `s.conn.SetWriteDeadline(time.Now().Add(s.streams.take))`, `s.conn.SetWriteDeadline(time.Time{})`}},
		[]string{"-run=^TestEvents_SlowReader$ ./internal/api"},
	},
	{
		"a user may open any number of streams", "streams are bounded",
		[]edit{{streams, `s.users[user] == maxStreamsPerUser`, `s.users[user] < 0`}},
		[]string{"-run=^TestEvents_Bounds$ ./internal/api"},
	},
	{
		"the search for the oldest queued job passes over what is committed late", inOrder,
		[]edit{{applying, `OR pg_snapshot_xmin(seen) >= settler THEN`, `OR true THEN`}},
		[]string{"-run=^TestApplyFindsWhatIsCommittedLate$/^Inserted$ ./internal/ledger"},
	},
	{
		"the search for the oldest queued job reads all that have finished", "a snapshot slows no account",
		[]edit{{applying, `AND position > done AND position <= up_to
    ORDER`, `AND position <= up_to
    ORDER`}},
		[]string{"-run=^TestApplyUnderASnapshot$ ./internal/ledger"},
	},
	{
		"an account keeps the transaction ids of another server", "a snapshot slows no account",
		[]edit{{applying, `IF settler > pg_snapshot_xmax(seen) THEN`, `IF false THEN`}},
		[]string{"-run=^TestApplyAfterARestoreWithLowerIDs$ ./internal/ledger"},
	},
	{
		"an accept draws its position before it has a transaction's id", inOrder,
		[]edit{{schema, ` := pg_catalog.pg_current_xact_id();`, `;`}},
		[]string{"-run=^TestApplyFindsWhatIsCommittedLate$/^PositionDrawn$ ./internal/ledger"},
	},
	{
		"the search for the oldest queued job passes over a replayed one", inOrder,
		[]edit{{schema, `SET done_to = least(done_to, OLD.position - 1)`, `SET done_to = done_to`}},
		[]string{"-run=^TestApplyFindsWhatWasReplayed$ ./internal/ledger"},
	},
	{
		"the last transaction of a batch does not flush", stays,
		[]edit{{pipeline, `flush = flushed`, `flush = unflushed`}},
		[]string{"-run=^TestApplyFlushesOnceABatch$/^Several$ ./internal/ledger"},
	},
	{
		"a last transaction that wrote nothing flushes for the batch", stays,
		[]edit{{pipeline, `wrote = len(result.applied) > 0`, `wrote = true`}},
		[]string{"-run=^TestApplyFlushesOnceABatch$/^LastWroteNothing$ ./internal/ledger"},
	},
	{
		"jobs before a failure are returned without a flush", stays,
		[]edit{{pipeline, `if err == nil && !isFlushed {`, `if err == nil && !isFlushed && heard == len(batch) && batch[heard-1].jobs.err == nil {`}},
		[]string{"-run=^TestApplyFlushesOnceABatch$/^LastRefused$ ./internal/ledger"},
	},
	{
		"jobs are returned though the result of their flush did not arrive", stays,
		[]edit{{pipeline, `return nil, 0, err
	}
	failpoint.Hit(failpoint.ApplyCommitted)`, `return applied, heard, err
	}
	failpoint.Hit(failpoint.ApplyCommitted)`}},
		[]string{"-run=^TestApplySharedLosesItsConnection$ ./internal/ledger", "-run=^TestApplyReturnsOnlyCommittedJobs$ ./internal/ledger"},
	},
	{
		"a batch that wrote nothing flushes", "one flush a batch",
		[]edit{{pipeline, `heard == len(batch) || len(applied) == 0`, `heard == len(batch)`}},
		[]string{"-run=^TestApplyFlushesOnceABatch$/^NothingToDo$ ./internal/ledger"},
	},
	{
		"every transaction of a batch flushes", "one flush a batch",
		[]edit{{pipeline, `flush := unflushed`, `flush := flushed`}},
		[]string{"-run=^TestApplyCommitsAheadOfTheFlush$ ./internal/ledger"},
	},
	{
		"an account's trouble holds up accounts that share its task", ownTrouble,
		[]edit{{handler, `case oneErr != nil:`, `case oneErr != nil:
			return nil, nil, oneErr`}},
		[]string{"-run=^TestSharedTask$ ./internal/worker"},
	},
	{
		"a merged notification forgets how many jobs it is for", disposable,
		[]edit{{notices, `n.Jobs += merged[i].Jobs`, ``}},
		[]string{"-run=^TestNotificationsOfAnAccountAreMerged$ ./internal/queue"},
	},
	{
		"a merged notification names an older job", disposable,
		[]edit{{notices, `n.Position > merged[i].Position`, `n.Position < merged[i].Position`}},
		[]string{"-run=^TestNotificationsOfAnAccountAreMerged$ ./internal/queue"},
	},
	{
		"a notification is added where no task will find it", disposable,
		[]edit{{notifier, `if redis.call("LLEN", KEYS[2]) == 0 and`, `if redis.call("LLEN", KEYS[2]) < 0 and`}},
		[]string{"-run=^TestTaskEnqueuesTheRemaining$ ./internal/queue"},
	},
	{
		"a task leaves what came while it was in hand", disposable,
		[]edit{{serving, `batch, more = s.next(ctx, queue, more)`, `batch, more = nil, !more`}},
		[]string{"-run=^TestTaskTakesNotifications$ ./internal/queue"},
	},
	{
		"a task lingers though notifications are left", disposable,
		[]edit{{serving, `redis.call("LLEN", KEYS[1]) + redis.call("LLEN", KEYS[3])`, `redis.call("LLEN", KEYS[3])`}},
		[]string{"-run=^TestTaskTakesABacklog$ ./internal/queue"},
	},
	{
		"a task lingers on a partition that has moved to another worker", disposable,
		[]edit{{pubsub, `w.endOthers()`, ``}},
		[]string{"-run=^TestAssignment_Lingering$ ./internal/queue"},
	},
	{
		"events that Redis did not send wake no partition", disposable,
		[]edit{{pubsub, `if l.enableEvents(ctx, m) {`, `if l.enableEvents(ctx, m); false {`}},
		[]string{"-run=^TestTaskLingers_LostEvent$ ./internal/queue"},
	},
	{
		"a worker that sleeps after malformed notifications does not say so", disposable,
		[]edit{{serving, `if len(taken) == 0 && len(answer) > 1 {`, `if false {`}},
		[]string{"-run=^TestAwake$ ./internal/queue"},
	},
	{
		"a worker sleeps and does not say so", disposable,
		[]edit{{serving, `redis.call("DEL", KEYS[2])`, ``}},
		[]string{"-run=^TestAwake$ ./internal/queue"},
	},
	{
		"a task that has handled its share leaves no other", disposable,
		[]edit{{serving, `err = cmp.Or(err, s.enqueueNotified(ctx, queue))`, ``}},
		[]string{"-run=^TestTaskEnqueuesTheRemaining$ ./internal/queue"},
	},
	{
		"a job that met an error is forgotten where its task does not name it", ownTrouble,
		[]edit{{serving, `remaining = append(remaining, one)`, ``}},
		[]string{"-run=^TestRemainingJobsHaveTasks$ ./internal/queue"},
	},
	{
		"another attempt takes another account's name", disposable,
		[]edit{{serving, `nextID(job.JobID, id)`, `nextID(jobs[0].JobID, id)`}},
		[]string{"-run=^TestRemainingJobsHaveTasks$ ./internal/queue"},
	},
	{
		"jobs whose results did not arrive are taken for finished", disposable,
		[]edit{{apply, `s.jobs.err = cmp.Or(s.jobs.err, err)`, `s.jobs.err = cmp.Or(s.jobs.err, nil)`}},
		[]string{"-run=^TestApplySharedLosesItsConnection$ ./internal/ledger"},
	},
	{
		"the remaining jobs are not counted", disposable,
		[]edit{{pipeline, `d.remaining = r.remaining`, `d.remaining = 0 * r.remaining`}},
		[]string{"-run=^TestApplyInOrderUpToTheNamedJob$ ./internal/ledger", machine},
	},

	{
		"one accept at fault undoes its batch", alone,
		[]edit{{accept, `case postgres.IsDataFault(err) && len(batch) > 1:`, `case postgres.IsDataFault(err) && len(batch) > maxBatch:`}},
		[]string{"-run=^TestAcceptOneAtFault$ ./internal/job"},
	},

	{
		"no sweep", disposable,
		[]edit{{work, `w.sweep(ctx)`, ``}},
		[]string{"-run=^TestSweepFindsJobsWithoutATask$ ./internal/worker", "-run=^TestSweepAfterFlushAll$ ./internal/worker"},
	},
	{
		"the sweep waits for a dead worker's task", disposable,
		[]edit{{sweep, `Attempt: account.task.Attempt + 1`, `Attempt: account.task.Attempt`}},
		[]string{"-run=^TestSweepPassesADeadWorkersTask$ ./internal/worker"},
	},
	{
		"an active task is believed for ever", disposable,
		[]edit{{stalled, `return !a.isLong(longActive)`, `return true`}},
		[]string{"-run=^TestSweepPassesADeadWorkersTask$ ./internal/worker"},
	},
	{
		"a shared task is believed for ever", disposable,
		[]edit{{stalled, `!a.isLong(longMissing)`, `true`}},
		[]string{"-run=^TestSweepBelievesASharedTask$ ./internal/worker"},
	},
	{
		"a lost task is believed for as many sweeps, however long they take", disposable,
		[]edit{{stalled, `time.Since(a.since) >=`, `time.Hour <`}},
		[]string{"-run=^TestSweepCountsTimeToo$ ./internal/worker"},
	},
	{
		"a task is believed for ever", disposable,
		[]edit{{stalled, `return !isLongPending(a.unchanged) && (list.Oldest != "" || !a.isLong(longUnlisted))`, `return true`}},
		[]string{"-run=^TestSweepPassesALostPendingList$ ./internal/worker"},
	},
	{
		"a task that is put off is believed for ever", disposable,
		[]edit{{stalled, `return !a.isLong(longRetry)`, `return true`}},
		[]string{"-run=^TestSweepPassesARetriedTask$ ./internal/worker"},
	},
	{
		"the sweep does not apply where Redis refuses", disposable,
		[]edit{{sweep, `w.applyStalled(ctx, found.direct)`, ``}},
		[]string{"-run=^TestSweepErrorConcernsOnePartition$ ./internal/worker"},
	},
	{
		"an error at one partition is every partition's", disposable,
		[]edit{{pending, `if err != nil && !IsAnswer(err) {`, `if unlessNil(err) != nil {`}},
		[]string{"-run=^TestSweepErrorConcernsOnePartition$ ./internal/worker"},
	},
	{
		"the name of a lost task is an empty list", disposable,
		[]edit{{wakeup, `!w.removeOrphans(ctx, keys[0])`, `true`}},
		[]string{"-run=^TestServeRemovesOrphans$ ./internal/queue"},
	},
	{
		"only one master of a cluster wakes the worker", disposable,
		[]edit{{pubsub, `masters[one.Options().Addr] = one`, `for known := range masters {
			if known < one.Options().Addr {
				return nil
			}
			delete(masters, known)
		}
		masters[one.Options().Addr] = one`}},
		[]string{"-run=^TestServeOnCluster$ ./internal/queue"},
	},
	{
		"a server that is no longer the primary denies what it does not know", stays,
		[]edit{{problems, `http.StatusUnauthorized, http.StatusNotAcceptable,`, `http.StatusUnauthorized, http.StatusNotFound, http.StatusNotAcceptable,`}},
		[]string{everyRoute},
	},
	{
		"a master that is cut off is every master", disposable,
		[]edit{{masters, `if err != nil {`, `if err == nil {`}},
		[]string{"-run=^TestOneMasterSilent$ ./internal/queue"},
	},
	{
		"a node that is cut off is dialed five times", disposable,
		[]edit{{connecting, `*dials = 1`, `*dials = 5`}},
		[]string{"-run=^TestOneMasterSilent$ ./internal/queue"},
	},
	{
		"tasks fill Redis while the workers are away", disposable,
		[]edit{{notifier, `> tonumber(ARGV[1])`, `> 10 * tonumber(ARGV[1])`}},
		[]string{"-run=^TestNotificationsAreBounded$ ./internal/queue"},
	},
	{
		"each sweep begins at the lowest account", disposable,
		[]edit{{scanning, `w.scan.from, w.scan.stayed = after, 0`, `w.scan.stayed = 0`}},
		[]string{"-run=^TestSweepGoesOnWhereItStopped$ ./internal/worker"},
	},
	{
		"another installation's tasks are taken", disposable,
		[]edit{{wakeup, `if w.queues.Owner.Err() != nil {`, `if false {`}},
		[]string{"-run=^TestTwoInstallationsSamePrefix$ ./internal/worker"},
	},
	{
		"a task of an unknown job is archived", disposable,
		[]edit{{serving, `attempts >= maxUnknownAttempts`, `attempts >= 0*maxUnknownAttempts`}},
		[]string{"-run=^TestUnknownJobIsGivenBack$ ./internal/worker", "-run=^TestUnknownJobIsArchivedAtLast$ ./internal/queue"},
	},
	{
		"a sweep that walked fully once never does again", disposable,
		[]edit{{scanning, `time.Since(s.at) >= min(scanShare*s.took, longestScanPause)`, `false`}},
		[]string{"-run=^TestSweepScansWhatIsKnown$ ./internal/worker"},
	},
	{
		"a full walk that takes too long puts the sweep off", disposable,
		[]edit{{scanning, `if err == nil || !postgres.IsTimeout(err) {`, `if err == nil || postgres.IsTimeout(err) {`}},
		[]string{"-run=^TestSweepWithoutAFullScan$ ./internal/worker"},
	},
	{
		"a pending list that does not move is waited for", disposable,
		[]edit{{sweep, `case account.isUnmoved():`, `case account.isUnmoved() && list.Paused:`}},
		[]string{"-run=^TestSweepAppliesBehindAListThatDoesNotMove$ ./internal/worker"},
	},
	{
		"a refused job ends the work for the accounts beside it", ownTrouble,
		[]edit{{direct, `due, _, batchErr = w.Apply(ctx, due)`, `if due, _, batchErr = w.Apply(ctx, due); batchErr != nil {
			due = nil
		}`}},
		[]string{"-run=^TestSweepAppliesBesideARefusedJob$ ./internal/worker"},
	},
	{
		"the sweep passes over jobs whose account is gone", ownTrouble,
		[]edit{{backlog, `OR NOT EXISTS (SELECT FROM accounts WHERE id = oldest.account_id)`, `OR false`}},
		[]string{"-run=^TestSweepFailsJobsWithoutAnAccount$ ./internal/worker"},
	},
	{
		"queues of more partitions are not served", disposable,
		[]edit{{serving, `s.extra.run(serving)`, ``}},
		[]string{"-run=^TestDifferingPartitions$ ./internal/worker"},
	},
	{
		"the sweep applies what an operator paused", disposable,
		[]edit{{sweep, `case list.Paused:`, `case false:`}},
		[]string{"-run=^TestSweepLeavesAPausedPartition$ ./internal/worker"},
	},
	{
		"the notification names the first job of a batch", disposable,
		[]edit{{accept, `*row.Position > *last[row.AccountID].Position`, `*row.Position < *last[row.AccountID].Position`}},
		[]string{"-run=^TestAcceptNotifiesForTheLast$ ./internal/job"},
	},

	{
		"the notification names the first job of a client's batch", disposable,
		[]edit{{batches, `row.Positions[jobs-1], batch.ids[row.Fresh[jobs-1]-1], jobs,`, `row.Positions[0], batch.ids[row.Fresh[0]-1], jobs,`}},
		[]string{"-run=^TestAcceptBatch$ ./internal/job"},
	},
	{
		"a client's batch is answered before its commit", durable,
		[]edit{{batches, `returned, _ := a.pool.Query(ctx,`, `tx, err := a.pool.Begin(ctx)
	if err != nil {
		return batchRow{}, err
	}
	defer func() { go tx.Commit(context.WithoutCancel(ctx)) }()
	returned, _ := tx.Query(ctx,`}},
		[]string{"-run=^TestAcceptBatch_ReturnsAfterTheCommit$ ./internal/job"},
	},
	{
		"the jobs of a client's batch take effect in the order of their keys", inOrder,
		[]edit{{batchSQL, `            ORDER BY request.n
            RETURNING`, `            ORDER BY keys[request.n]
            RETURNING`}},
		[]string{"-run=^TestAcceptBatch$ ./internal/job"},
	},
	{
		"a client's batch with a reused key is accepted in part", keyForGood,
		[]edit{{batchSQL, `AND reused IS NULL AND`, `AND`}},
		[]string{"-run=^TestAcceptBatch_UsedKeys$ ./internal/job", "-run=^TestAcceptBatch_AtOnce$ ./internal/job"},
	},
	{
		"a client's batch is accepted without the row that the database drops", durable,
		[]edit{{batchSQL, `IF cardinality(positions) IS DISTINCT FROM cardinality(fresh) THEN`, `IF false THEN`}},
		[]string{"-run=^TestAcceptBatch_DroppedRow$ ./internal/job"},
	},
	{
		"a client's batch passes the queue capacity", ownTrouble,
		[]edit{{batchSQL, ` AND cardinality(fresh) <= capacity THEN`, ` THEN`}},
		[]string{"-run=^TestAcceptBatch_Refused$ ./internal/job", "-run=^TestAcceptBatch_QueueFull$ ./internal/api"},
	},
	{
		"a client's batch is accepted for another user's account", "an account has one owner",
		[]edit{{batchSQL, `owned.number = account_number AND owned.user_id = owner`, `owned.number = account_number`}},
		[]string{"-run=^TestAcceptBatch_Refused$ ./internal/job", "-run=^TestAcceptBatch_AccountNotFound$ ./internal/api"},
	},
	{
		"a client's batch passes over its keys' locks", keyForGood,
		[]edit{{batchSQL, `busy := NOT pg_try_advisory_xact_lock(key_lock);`, `busy := false;`}},
		[]string{"-run=^TestAcceptBatch_Refused$ ./internal/job", "-run=^TestAcceptBatch_LockedKey$ ./internal/api"},
	},
	{
		"client's batches share the locks of their keys", keyForGood,
		[]edit{{batchSQL, `pg_try_advisory_xact_lock(key_lock)`, `pg_try_advisory_xact_lock_shared(key_lock)`}},
		[]string{"-run=^TestAcceptBatch_AtOnce$ ./internal/job"},
	},
	{
		"a key in a client's batch may be used for another amount", keyForGood,
		[]edit{
			{batchSQL, `(job.account_id, job.type, job.amount, job.description)`, `(job.account_id, job.type, job.description)`},
			{batchSQL, `(account, types[request.n], amounts[request.n], descriptions[request.n])`, `(account, types[request.n], descriptions[request.n])`},
		},
		[]string{"-run=^TestAcceptBatch_UsedKeys$ ./internal/job"},
	},
	{
		"an opening's key takes a job of a client's batch", keyForGood,
		[]edit{{batchSQL, `WHERE user_id = owner AND open_key = request.key`, `WHERE user_id = owner AND open_key = request.key AND false`}},
		[]string{"-run=^TestAcceptBatch_UsedKeys$ ./internal/job"},
	},
	{
		"an archived job's key is new to a client's batch", keyForGood,
		[]edit{{batchSQL, `FROM archived_jobs WHERE user_id = owner`, `FROM archived_jobs WHERE false AND user_id = owner`}},
		[]string{"-run=^TestAcceptBatch_UsedKeys$ ./internal/job"},
	},
	{
		"a key stands twice in a client's batch", keyForGood,
		[]edit{{batchEdge, `; repeated && req.Key != "" {`, `; repeated && req.Key == "" {`}},
		[]string{"-run=^TestAcceptBatch_Invalid$ ./internal/api"},
	},

	{
		"attempts never end", ownTrouble,
		[]edit{{attempts, `at.Attempt < MaxAttempts`, `at.Attempt < 1000*MaxAttempts`}},
		[]string{"-run=^TestApplyRefusedJob$ ./internal/ledger", "-run=^TestFailedJob$ ./internal/worker"},
	},
	{
		"a lock not granted spends an attempt", ownTrouble,
		[]edit{{pgErrors, `"21", "22", "23",`, `"21", "22", "23", "55", "57",`}},
		[]string{"-run=^TestErrors$ ./internal/postgres", "-run=^TestApplySpendsNoAttemptOnPostgresTrouble$ ./internal/ledger"},
	},

	{
		"a key makes any number of jobs", keyForGood,
		[]edit{
			{schema, `jobs_key ON jobs (user_id, idempotency_key)`, `jobs_key ON jobs (user_id, idempotency_key, id)`},
			{accepts, `ON CONFLICT (user_id, idempotency_key) DO NOTHING`, `ON CONFLICT DO NOTHING`},
		},
		[]string{
			refuses("KeyTwice"),
			"-run=^TestAccept(OneKeyAtOnce|OverlappingBatches)?$ ./internal/job",
			"-run=^TestOneKeyAtOnce$ ./internal/test/e2e",
		},
	},
	{
		"a key may be used for another amount", keyForGood,
		[]edit{{accept, `job.Amount == r.Amount`, `job.Amount > 0`}},
		[]string{"-run=^TestAccept$ ./internal/job"},
	},
	{
		"an opening's key takes jobs", keyForGood,
		[]edit{{accepts, `IF NOT opened AND NOT busy`, `IF NOT busy`}},
		[]string{"-run=^TestAccept$ ./internal/job"},
	},
	{
		"a job's key opens accounts", keyForGood,
		[]edit{{accounts, `WHERE NOT EXISTS (SELECT FROM jobs WHERE user_id = $1 AND idempotency_key = $4)`, `WHERE true`}},
		[]string{"-run=^TestOpenWithAJobsKey$ ./internal/ledger"},
	},
	{
		"a key is not locked against openings", keyForGood,
		[]edit{{accepts, `pg_try_advisory_xact_lock_shared(locks[i])`, `true`}},
		[]string{"-run=^TestAcceptALockedKey$ ./internal/job"},
	},
	{
		"a job is inserted though its key is locked", keyForGood,
		[]edit{{accepts, `AND NOT busy AND`, `AND`}},
		[]string{"-run=^TestAcceptALockedKey$ ./internal/job"},
	},
	{
		"an opening passes over its key's lock", keyForGood,
		[]edit{{accounts, `case !key:`, `case false && !key:`}},
		[]string{"-run=^TestIdempotencyKey_Locked$ ./internal/api"},
	},
	{
		"jobs may be deleted, and their keys with them", keyForGood,
		[]edit{{
			schema, `IF NOT EXISTS (SELECT FROM archived_jobs archived JOIN job_states`,
			`IF false AND NOT EXISTS (SELECT FROM archived_jobs archived JOIN job_states`,
		}},
		[]string{refuses("JobDeleted")},
	},
	{
		"a job may be deleted that is archived otherwise", keyForGood,
		[]edit{{schema, `OLD.id AND
        (archived.position`, `OLD.id OR false AND
        (archived.position`}},
		[]string{refuses("JobDeletedThatIsArchivedWithAnother")},
	},
	{
		"an archived job's key makes jobs", keyForGood,
		[]edit{{schema, `SELECT FROM archived_jobs WHERE user_id = NEW.user_id AND idempotency_key = NEW.idempotency_key`, `SELECT WHERE false`}},
		[]string{"-run=^TestArchive(dKeysAreSkipped)?$ ./internal/job"},
	},
	{
		"a key comes back while its job is archived", keyForGood,
		[]edit{{archive, `WHERE pg_try_advisory_xact_lock(lock)`, ``}},
		[]string{"-run=^TestArchiveWhileAKeyIsSentAgain$ ./internal/job", "-run=^TestArchiveWhileKeysAreSentAgain$ ./internal/job"},
	},
	{
		"an archived job's key opens accounts", keyForGood,
		[]edit{{accounts, `AND NOT EXISTS (SELECT FROM archived_jobs WHERE user_id = $1 AND idempotency_key = $4)`, ``}},
		[]string{"-run=^TestOpenWithAJobsKey$ ./internal/ledger", "-run=^TestArchive$ ./internal/job"},
	},
	{
		"a role that was granted it moves a balance alone", balanced,
		[]edit{{schema, `FOR UPDATE USING (true) WITH CHECK (false)`, `FOR UPDATE USING (true) WITH CHECK (true)`}},
		[]string{"-run=^TestRoleWithEveryGrant$ ./internal/ledger"},
	},
	{
		"a role that was granted it writes history alone", balanced,
		[]edit{{schema, `ALTER TABLE transactions ENABLE ROW LEVEL SECURITY;`, ``}},
		[]string{"-run=^TestRoleWithEveryGrant$ ./internal/ledger"},
	},
	{
		"every role may apply jobs and deposit", balanced,
		[]edit{
			{schema, `REVOKE EXECUTE ON FUNCTION archive_jobs, close_history, deposit_initial, leave_queue, enter_queue, replay_job, stamp_failure FROM PUBLIC;`, ``},
			{applying, `REVOKE EXECUTE ON FUNCTION apply_job FROM PUBLIC;`, ``},
		},
		[]string{"-run=^TestRoleWithEveryGrant$ ./internal/ledger"},
	},
	{
		"an account is given a second initial deposit", balanced,
		[]edit{{schema, `WHERE id = account AND last_seq = 0`, `WHERE id = account AND last_seq <= 1`}},
		[]string{"-run=^TestInitialDepositOnce$ ./internal/ledger"},
	},
	{
		"a session that replicates may change history", balanced,
		[]edit{{schema, `ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_append_only, ENABLE ALWAYS`, `ALTER TABLE transactions ENABLE ALWAYS`}},
		[]string{"-run=^TestGuardsHoldInEverySession$/^Replica$ ./internal/ledger"},
	},
	{
		"a temporary table hides the archive", keyForGood,
		[]edit{{schema, `'replay_job', 'skip_archived'`, `'replay_job'`}},
		[]string{"-run=^TestGuardsHoldInEverySession$/^TemporaryTables$ ./internal/ledger"},
	},
	{
		"a read looks into the archive first", stays,
		[]edit{
			{jobs, `job, err := r.read(ctx, readSQL,`, `job, err := r.read(ctx, readArchivedSQL,`},
			{jobs, `job, err = r.read(ctx, readArchivedSQL,`, `job, err = r.read(ctx, readSQL,`},
		},
		[]string{"-run=^TestReadWhileArchived$ ./internal/job"},
	},
	{
		"an archived job has no answer", keyForGood,
		[]edit{{accept, `FROM archived_jobs WHERE user_id = request.user_id`, `FROM archived_jobs WHERE false AND user_id = request.user_id`}},
		[]string{"-run=^TestArchive(WhileKeysAreSentAgain)?$ ./internal/job"},
	},
	{
		"an answer leaves before what it shows is durable", stays,
		[]edit{{edge, `if lost := a.cfg.Gate.Wait(ctx, shown); lost != nil {`, `if lost := error(nil); lost != nil && shown != nil {`}},
		[]string{everyRoute},
	},
	{
		"an answer that is dropped leaves its headers", stays,
		[]edit{{edge, `c.Response().Reset()`, ``}},
		[]string{everyRoute},
	},
	{
		"a problem tells of what is not durable", stays,
		[]edit{{edge, `postgres.ShowAll(ctx)`, `postgres.ShowNone(ctx)`}},
		[]string{everyRoute},
	},
	{
		"a read of accounts omits its writers", stays,
		[]edit{{accounts, `, accounts.xmin, `, `, NULL::xid, `}},
		[]string{everyRoute},
	},
	{
		"a read of jobs omits its writers", stays,
		[]edit{{jobs, `, job.finished_by, `, `, NULL::xid, `}},
		[]string{everyRoute},
	},
	{
		"a list of queued jobs leaves out what is not durable", stays,
		[]edit{{jobLists, `if page.Status == Queued {`, `if false {`}},
		[]string{everyRoute},
	},
	{
		"a read of jobs by key omits its writers", stays,
		[]edit{{accept, `, job.writer, `, `, NULL::xid, `}},
		[]string{everyRoute},
	},
	{
		"a search by key that finds nothing needs no confirmation", stays,
		[]edit{{jobs, `postgres.ShowAll(ctx)`, `_ = postgres.ShowAll`}},
		[]string{everyRoute},
	},
	{
		"a batch does not report what it replays", stays,
		[]edit{{batches, `r.shown.AddTo(ctx)`, `postgres.ShowNone(ctx)`}},
		[]string{everyRoute},
	},
	{
		"a read of a history omits its writers", stays,
		[]edit{{balances, `created_at, xmin, `, `created_at, NULL::xid, `}},
		[]string{everyRoute},
	},
	{
		"a read of a balance omits its writer", stays,
		[]edit{{balances, `account.xmin, `, `NULL::xid, `}},
		[]string{everyRoute},
	},
	{
		"a read of an export's bound omits its writer", stays,
		[]edit{{replica, `SELECT last_seq, xmin, `, `SELECT last_seq, NULL::xid, `}},
		[]string{everyRoute},
	},
	{
		"a replica of another history is read", stays,
		[]edit{{replica, `case history != life.History:`, `case false:`}},
		[]string{"-run=^TestReplica_OfAnotherHistory$ ./internal/statement"},
	},
	{
		"a request that tells nothing shows nothing", stays,
		[]edit{{gate, `if shown.reported && shown.newest == 0 {`, `if shown.newest == 0 {`}},
		[]string{"-run=^TestGate$ ./internal/postgres"},
	},
	{
		"a confirmation flushes nothing", stays,
		[]edit{{gate, `, (` + "` + ConfirmSQL + `" + `)`, `, 1`}},
		[]string{"-run=^TestGate$ ./internal/postgres"},
	},
	{
		"a replica may say that something is absent", stays,
		[]edit{{"internal/statement/replica.go", `err == nil || ctx.Err() != nil`, `err == nil || errors.Is(err, ErrNotFound) || ctx.Err() != nil`}},
		[]string{"-run=^TestReplica$ ./internal/statement"},
	},
	{
		"a confirmation covers what ends while it waits", stays,
		[]edit{{gate, `if err := conn.QueryRow(ctx, sql).Scan(dest...); err != nil {`, `_, _ = conn.Exec(ctx, sql)
	if err := conn.QueryRow(ctx, "SELECT pg_snapshot_xmin(pg_current_snapshot()), '3'::xid8, 1").Scan(dest...); err != nil {`}},
		[]string{"-run=^TestGate_EndsMeanwhile$ ./internal/postgres"},
	},
	{
		"a confirmation covers what was under way", stays,
		[]edit{{gate, `pg_snapshot_xmin(pg_current_snapshot()), pg_current`, `pg_snapshot_xmax(pg_current_snapshot()), pg_current`}},
		[]string{"-run=^TestGate_UnderWay$ ./internal/postgres"},
	},
	{
		"a read is confirmed by another life of the server", stays,
		[]edit{{gate, `if c.life != life {`, `if false {`}},
		[]string{"-run=^TestGate_Crash$ ./internal/postgres"},
	},
	{
		"a read is covered by another life of the server", stays,
		[]edit{{gate, `cmp.Or(shown.life, shown.before) == g.last.life && `, ``}},
		[]string{"-run=^TestGate_Crash$ ./internal/postgres"},
	},
	{
		"behind a pooler a confirmation has the life of its connection", stays,
		[]edit{
			{pooler, `cfg.AfterConnect = func(_ context.Context, conn *pgconn.PgConn) error {`, `cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		got := conn.ExecParams(ctx, "SELECT "+lifeSQL, nil, nil, nil, nil).Read()
		conn.CustomData()[lifeKey] = ServerLife{string(got.Rows[0][0]), string(got.Rows[0][1])}`},
			{gate, `sql, dest = confirmSQL+`, `_, _ = confirmSQL+`},
		},
		[]string{"-run=^TestGate_Pooler$ ./internal/postgres"},
	},
	{
		"a request reads in two lives of the server", stays,
		[]edit{{gate, `if shown.torn {`, `if false {`}},
		[]string{"-run=^TestGate_Crash$ ./internal/postgres"},
	},
	{
		"a crash under a postmaster that stays begins no new life", stays,
		[]edit{{shown, `coalesce(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text, '')`, `''`}},
		[]string{"-run=^TestGate_Crash$/^OfOneProcess$ ./internal/postgres"},
	},

	{
		"a read of an account does not check its owner", owned,
		[]edit{{accounts, `WHERE number = $2 AND user_id = $1`, `WHERE number = $2 AND $1::uuid IS NOT NULL`}},
		[]string{anothers("Objects")},
	},
	{
		"a list of accounts shows those of all users", owned,
		[]edit{{accounts, `WHERE user_id = $1 AND id > $2`, `WHERE $1::uuid IS NOT NULL AND id > $2`}},
		[]string{anothers("Lists")},
	},
	{
		"a read of a job does not check its owner", owned,
		[]edit{{jobs, `WHERE job.user_id = $2`, `WHERE $2::uuid IS NOT NULL`}},
		[]string{anothers("Objects")},
	},
	{
		"a list of jobs does not check the account's owner", owned,
		[]edit{{jobLists, `currency FROM accounts WHERE user_id = $1 AND`, `currency FROM accounts WHERE $1::uuid IS NOT NULL AND`}},
		[]string{anothers("Objects")},
	},
	{
		"a list of no jobs does not check the account's owner", owned,
		[]edit{{jobLists, `SELECT FROM accounts WHERE user_id = $1 AND`, `SELECT FROM accounts WHERE $1::uuid IS NOT NULL AND`}},
		[]string{anothers("Objects")},
	},
	{
		"a read of a history does not check the account's owner", owned,
		[]edit{{balances, `SELECT id FROM accounts WHERE user_id = $1 AND`, `SELECT id FROM accounts WHERE $1::uuid IS NOT NULL AND`}},
		[]string{anothers("Objects")},
	},
	{
		"a read of a balance does not check the account's owner", owned,
		[]edit{{balances, `WHERE account.user_id = $1 AND`, `WHERE $1::uuid IS NOT NULL AND`}},
		[]string{anothers("Objects")},
	},
	{
		"a job is accepted for another user's account", owned,
		[]edit{{accepts, `AND owned.user_id = users[request.n]`, ``}},
		[]string{anothers("Objects")},
	},
	{
		"a key finds another user's job", owned,
		[]edit{
			{accept, `FROM job_states WHERE user_id = request.user_id AND idempotency_key`, `FROM job_states WHERE idempotency_key`},
			{accept, `SELECT job.user_id, job.idempotency_key`, `SELECT request.user_id, job.idempotency_key`},
		},
		[]string{anothers("Keys")},
	},
	{
		"a key that opened another user's account opens none", owned,
		[]edit{{accounts, `FROM accounts WHERE user_id = $1 AND open_key = $4`, `FROM accounts WHERE open_key = $4`}},
		[]string{anothers("Keys")},
	},
	{
		"a key finds another user's account", owned,
		[]edit{{accounts, `readSQL + ` + "`" + ` WHERE user_id = $1 AND open_key = $2`, `readSQL + ` + "`" + ` WHERE $1::uuid IS NOT NULL AND open_key = $2 ORDER BY id LIMIT 1`}},
		[]string{anothers("Keys")},
	},
	{
		"a route needs no token", knownUser,
		[]edit{{edge, `if !r.open {`, `if !r.open && c.Get(fiber.HeaderAuthorization) != "" {`}},
		[]string{badToken},
	},
	{
		"any algorithm signs tokens", knownUser,
		[]edit{{tokens, `		jwt.WithValidMethods([]string{signingMethod.Alg()}),
`, ``}},
		[]string{badToken},
	},
	{
		"a token may be of any type", knownUser,
		[]edit{{tokens, `if token.Header["typ"] != accessTokenType {`, `if false {`}},
		[]string{badToken},
	},
	{
		"a token may name its own key", knownUser,
		[]edit{{tokens, `if len(token.Header) != 3 {`, `if false {`}},
		[]string{badToken},
	},
	{
		"a token is good for ever", knownUser,
		[]edit{{tokens, `case at >= c.ExpiresAt:`, `case false:`}},
		[]string{badToken},
	},
	{
		"a token is good for another service", knownUser,
		[]edit{{tokens, `		jwt.WithAudience(s.audience),
`, ``}},
		[]string{badToken},
	},
	{
		"a revoked session is alive", knownUser,
		[]edit{{sights, `WHERE id = $1 AND revoked_at IS NULL`, `WHERE id = $1`}},
		[]string{badToken, "-run=^TestChangePassword$ ./internal/auth"},
	},
	{
		"a change of the password leaves the sessions", knownUser,
		[]edit{{change, `WHERE user_id = $1 AND revoked_at IS NULL RETURNING id`, `WHERE user_id = $1 AND false RETURNING id`}},
		[]string{"-run=^TestChangePassword(_LogInUnderWay|_RefreshUnderWay)?$ ./internal/auth", "-run=^TestChangePassword$ ./internal/api"},
	},
	{
		"a change of the password forgets which sessions it revoked", knownUser,
		[]edit{{change, `s.live.drop(id)`, `_ = id`}},
		[]string{"-run=^TestChangePassword(_LosesItsConnection)?$ ./internal/auth"},
	},
	{
		"a change of the password asks for no password", knownUser,
		[]edit{{change, `err = s.checkPassword(ctx, current, hash)`, `_ = s.checkPassword(ctx, current, hash)`}},
		[]string{"-run=^TestChangePassword$ ./internal/auth"},
	},
	{
		"two changes of one password both happen", knownUser,
		[]edit{{change, `AND password_hash = $2 FOR NO KEY UPDATE NOWAIT`, `AND $2::text IS NOT NULL FOR NO KEY UPDATE NOWAIT`}},
		[]string{"-run=^TestChangePassword_Concurrent$ ./internal/auth"},
	},
	{
		"a log-in does not see that its password was replaced", knownUser,
		[]edit{{sessions, `AND password_hash = $5 FOR SHARE NOWAIT`, `AND $5::text IS NOT NULL FOR SHARE NOWAIT`}},
		[]string{"-run=^TestChangePassword_LogInUnderWay$ ./internal/auth"},
	},
	{
		"a log-in does not lock its user", knownUser,
		[]edit{{sessions, `AND password_hash = $5 FOR SHARE NOWAIT`, `AND password_hash = $5`}},
		[]string{"-run=^TestChangePassword_LogInUnderWay$ ./internal/auth"},
	},
	{
		"the password is replaced before the sessions are revoked", knownUser,
		[]edit{{change, `				revoked, err = revokeAll(ctx, tx, userID)
`, `				_, _ = tx.Exec(ctx, "COMMIT AND CHAIN")
				revoked, err = revokeAll(ctx, tx, userID)
`}},
		[]string{"-run=^TestChangePassword_LosesItsConnection$ ./internal/auth"},
	},
	{
		"a request may be framed in two ways", knownUser,
		[]edit{{edge, `if isFramed(c) {`, `if isFramed(c) || true {`}},
		[]string{"-run=^TestFraming_EveryRoute$ ./internal/api"},
	},
	{
		"unknown members are ignored", knownUser,
		[]edit{{decode, `b.fault(name, "unknown_field", "is not known here")`, `_ = name`}},
		[]string{"-run=^TestSecurity_UnknownMembers$ ./internal/api"},
	},
	{
		"a cache may keep what is a user's", owned,
		[]edit{{edge, `c.Set(fiber.HeaderCacheControl, noStore)`, ``}},
		[]string{"-run=^TestSecurity_AnothersLists$ ./internal/api"},
	},

	{
		"requests that wait get what is not confirmed", stays,
		[]edit{{ends, `(` + "` + postgres.ConfirmSQL + `" + `) IS NOT NULL`, `false AND (` + "` + postgres.ConfirmSQL + `" + `) IS NULL`}},
		[]string{"-run=^TestFinished_Confirms$ ./internal/job", "-run=^TestGate_Waiting$ ./internal/api"},
	},
	{
		"requests wait in front of the gate", stays,
		[]edit{{edge, `return a.confirmed(c, r, q)`, `return r.handle(c, q)`}},
		[]string{everyRoute},
	},
	{
		"a request gets the failure from before a replay", stays,
		[]edit{{waiting, `if w.after >= number {`, `if w.after > number {`}},
		[]string{"-run=^TestWait_Replayed$ ./internal/finished"},
	},
	{
		"a request that waits gets another user's job", owned,
		[]edit{{ends, ` AND user_id = asked.user_id AND status`, ` AND status`}},
		[]string{"-run=^TestFinished$ ./internal/job"},
	},
	{
		"a request that waits gets another user's archived job", owned,
		[]edit{{ends, `FROM archived_jobs WHERE id = asked.id AND user_id = asked.user_id`, `FROM archived_jobs WHERE id = asked.id`}},
		[]string{"-run=^TestFinished_Archived$ ./internal/job"},
	},
	{
		"a request does not get a job that was archived during its wait", stays,
		[]edit{{ends, `FROM archived_jobs WHERE id = asked.id`, `FROM archived_jobs WHERE false AND id = asked.id`}},
		[]string{"-run=^TestFinished_Archived$ ./internal/job"},
	},
	{
		"a process starts on a Redis without what the queues need", disposable,
		[]edit{{"internal/boot/boot.go", `if err := queue.CheckVersion(ctx, p.Redis, p.Log); err != nil {`, `if err := queue.CheckVersion(ctx, p.Redis, p.Log); err != nil && false {`}},
		[]string{"-run=^TestRunRefusesAnOldRedis$ ./cmd/worker"},
	},
	{
		"requests wait for messages alone", disposable,
		[]edit{{hub, `	parts.Go(func() { h.keepLooking(ctx, h.lookAtJobsNow, jobsEvery, h.lookAtJobs) })
`, ``}},
		[]string{"-run=^TestWait_WithoutMessages$ ./internal/finished"},
	},
	{
		"watchers rely on messages alone", disposable,
		[]edit{{hub, `	parts.Go(func() { h.keepLooking(ctx, h.lookAtAccountsNow, accountsEvery, h.lookAtAccounts) })
`, ``}},
		[]string{"-run=^TestWatchAccount_WithoutMessages$ ./internal/finished"},
	},

	{
		"a user has no limit", bounded,
		[]edit{{edge, `if err := a.limitUser(c, identity.UserID); err != nil {`, `if err := a.limitUser(c, identity.UserID); err != nil && false {`}},
		[]string{"-run=^TestUserLimit ./internal/api"},
	},
	{
		"an API forgets what Redis did not have", bounded,
		[]edit{{settling, `l.owe(b, missing, now)`, `l.owe(b, 0, now)`}},
		[]string{"-run=^TestRun_PaysDebts$ ./internal/limit"},
	},
	{
		"an API does not hear what others allowed", bounded,
		[]edit{{settling, `if excess := int(b.tokens.TokensAt(now)) - (left.Remaining - b.owed); excess > 0 {`, `if excess := 0; excess > 0 {`}},
		[]string{"-run=^TestRun_SharesTheQuota$ ./internal/limit"},
	},
	{
		"what Redis refuses is allowed", bounded,
		[]edit{{settling, `allowed = missing == 0`, `allowed = true`}},
		[]string{"-run=^TestTakeShared$ ./internal/limit"},
	},
	{
		"what a key regained during an outage is a debt", bounded,
		[]edit{{settling, `owed = max(0, min(owed, lacks))`, `owed += 0 * lacks`}},
		[]string{"-run=^TestSettle_ForgivesWhatIsRegained$ ./internal/limit"},
	},
	{
		"a question without an answer makes a debt young again", bounded,
		[]edit{{settling, `l.owe(b, claimed, since)`, `_ = since; l.owe(b, claimed, now)`}},
		[]string{"-run=^TestSettle_ForgivesAfterAnOutage$ ./internal/limit"},
	},
	{
		"all questions of a round share the time of one", bounded,
		[]edit{
			{settling, `group, asking := errgroup.WithContext(ctx)`, `asking, stop := context.WithTimeout(ctx, settleTimeout); defer stop(); group, asking := errgroup.WithContext(asking)`},
			{settling, `question, cancel := context.WithTimeout(asking, settleTimeout)`, `question, cancel := context.WithCancel(asking)`},
		},
		[]string{"-run=^TestSettle_TimesEachQuestion$ ./internal/limit"},
	},
	{
		"an API forgets what its own bucket has regained", bounded,
		[]edit{{settling, `if now.Sub(since) > forgiveAfter {`, `if now.Sub(since) >= 0 {`}},
		[]string{"-run=^TestSettle_AddsUpProcesses$ ./internal/limit"},
	},
	{
		"an email may be guessed from many addresses", bounded,
		[]edit{{limits, `state := limits.Emails.TakeShared(c.UserContext(), hashEmail(email))`, `state := limits.Emails.TakeShared(c.UserContext(), a.pairOf(c, email))`}},
		[]string{"-run=^TestLogInLimit_Email$ ./internal/api"},
	},
	{
		"the case of an email's letters makes another quota", bounded,
		[]edit{{limits, `sum := sha256.Sum256([]byte(auth.EmailKey(email)))`, `sum := sha256.Sum256([]byte(email))`}},
		[]string{"-run=^TestLogInLimit_Email$ ./internal/api"},
	},
	{
		"a guesser locks the owner out", bounded,
		[]edit{{limits, `!state.Allowed && limits.Known.MayHave(`, `false && limits.Known.MayHave(`}},
		[]string{"-run=^TestLogInLimit_Email$ ./internal/api"},
	},
	{
		"a guesser locks the owner out of a change of the password", bounded,
		[]edit{{"internal/api/users.go", `if err := a.limitChange(c, user.ID); err != nil {`, `if err := a.limitLogIn(c, user.Email); err != nil {`}},
		[]string{"-run=^TestLogInLimit_Remembers$ ./internal/api"},
	},
	{
		"an outage of Redis locks the owner out", bounded,
		[]edit{{"internal/limit/known.go", `return err != nil || n > 0`, `return err == nil && n > 0`}},
		[]string{"-run=^TestLimits_WithoutRedis$ ./internal/api"},
	},
	{
		"a refresh does not remember the owner's address", bounded,
		[]edit{{"internal/api/users.go", `a.remember(c, tokens.Email)`, ``}},
		[]string{"-run=^TestLogInLimit_Remembers$ ./internal/api"},
	},
	{
		"any client says where it comes from", bounded,
		[]edit{{limits, `len(hops) > 0 && a.isProxy(client);`, `len(hops) > 0;`}},
		[]string{"-run=^TestLogInLimit_Address$ ./internal/api"},
	},
	{
		"a proxy that adds the port hides its clients", bounded,
		[]edit{{limits, `netip.ParseAddrPort(text); err == nil`, `netip.ParseAddrPort(text); err != nil`}},
		[]string{"-run=^TestLogInLimit_Address$ ./internal/api"},
	},
	{
		"a sign-up counts for no address", bounded,
		[]edit{{"internal/api/users.go", `if err := a.limitAddress(c); err != nil {`, `if err := a.limitAddress(c); err != nil && false {`}},
		[]string{"-run=^TestLogInLimit_Address$ ./internal/api"},
	},
	{
		"a client's batch counts as one request", bounded,
		[]edit{{batchEdge, `a.limitBatch(c, caller(c), len(requests))`, `a.limitBatch(c, caller(c), 1+0*len(requests))`}},
		[]string{"-run=^TestUserLimit_Batch$ ./internal/api"},
	},
	{
		"the waiting batches of one user have no bound", bounded,
		[]edit{{batches, `if b.waiting[user] == maxWaitingBatchesPerUser {`, `if false {`}},
		[]string{"-run=^TestAcceptBatch_Places$ ./internal/job"},
	},
	{
		"the requests in flight of one user have no bound", bounded,
		[]edit{{limits, `if u.taken[user] == u.most {`, `if false {`}},
		[]string{"-run=^TestInFlight_User$ ./internal/api"},
	},
	{
		"the waiting requests of one user have no bound", bounded,
		[]edit{{waiting, ` || h.waitersOf[userID] == maxWaitersPerUser {`, ` {`}},
		[]string{"-run=^TestWait_Bound$ ./internal/finished"},
	},
	{
		"any number of requests is in flight", bounded,
		[]edit{{limits, `n < s.most;`, `n >= 0;`}},
		[]string{"-run=^TestInFlight$ ./internal/api"},
	},
	{
		"a flood of log-ins refuses refreshes", bounded,
		[]edit{{limits, `return a.refreshes`, `return a.guests`}},
		[]string{"-run=^TestInFlight_Refreshes$ ./internal/api"},
	},
	{
		"a refresh token is spent while commits wait for the standby", knownUser,
		[]edit{{sessions, `if err := s.confirm(ctx, sql, hash); err != nil {`, `if err := error(nil); err != nil {`}},
		[]string{"-run=^TestStandbyAway$ ./internal/auth"},
	},
	{
		"a user signs up while commits wait for the standby", knownUser,
		[]edit{{"internal/auth/users.go", `s.confirm(ctx, postgres.ConfirmSQL)`, `s.confirm(ctx, postgres.ConfirmSQL[:0])`}},
		[]string{"-run=^TestStandbyAway$ ./internal/auth"},
	},
	{
		"a password changes while commits wait for the standby", knownUser,
		[]edit{{"internal/auth/change.go", `s.confirm(ctx, postgres.ConfirmSQL)`, `s.confirm(ctx, postgres.ConfirmSQL[:0])`}},
		[]string{"-run=^TestStandbyAway$ ./internal/auth"},
	},
	{
		"a file that can't be read stops its partition", ownTrouble,
		[]edit{{pgErrors, `"08", "28", "3D", "53", "57":`, `"08", "28", "3D", "53", "57", "58":`}},
		[]string{"-run=^TestErrors$ ./internal/postgres", "-run=^TestApplyAnUnreadableAccount$ ./internal/worker"},
	},
	{
		"a bad refresh token counts for no address", bounded,
		[]edit{{limits, `if errors.Is(err, auth.ErrInvalidRefreshToken) {`, `if err == nil && errors.Is(err, auth.ErrInvalidRefreshToken) {`}},
		[]string{"-run=^TestTokenLimit$ ./internal/api"},
	},
	{
		"a deposit waits however many wait before it", bounded,
		[]edit{{shed, `|| !a.overloaded() {`, `|| true {`}},
		[]string{"-run=^TestShed$ ./internal/api"},
	},
	{
		"a deposit that is refused under overload is not counted", observed,
		[]edit{{shed, `reasons.Inc()`, `_ = reasons`}},
		[]string{"-run=^TestRefuser$ ./internal/api"},
	},
	{
		"a batch that waits for a lock delays the others", ownTrouble,
		[]edit{{batching, `time.AfterFunc(b.slow, next)`, `time.AfterFunc(24*b.slow+time.Hour, next)`}},
		[]string{"-run=^TestBatcherPassesASlowBatch$ ./internal/worker"},
	},
	{
		"an accept waits however many wait before it", bounded,
		[]edit{{accept, `if a.IsOverloaded() {`, `if false {`}},
		[]string{"-run=^TestAccept_Overloaded$ ./internal/job"},
	},
	{
		"openings at the same time don't count each other", bounded,
		[]edit{{accounts, `a.MaxPerUser == 0, KeyLock`, `true, KeyLock`}},
		[]string{"-run=^TestOpen_MaxPerUser$ ./internal/ledger"},
	},
	{
		"openings of one user take connections while they wait for each other", bounded,
		[]edit{{accounts, `if a.MaxPerUser > 0 {`, `if a.MaxPerUser < 0 {`}},
		[]string{"-run=^TestOpen_ManyAtOnce$ ./internal/ledger"},
	},
	{
		"a user opens any number of accounts", bounded,
		[]edit{{accounts, `($6::bigint = 0 OR `, `($6::bigint >= 0 OR `}},
		[]string{"-run=^TestOpen_MaxPerUser$ ./internal/ledger", "-run=^TestAccountLimit$ ./internal/api"},
	},
	{
		"the API reads a query differently from a proxy", described,
		[]edit{{queries, `if bytes.IndexByte(text, ';') >= 0 {`, `if false {`}},
		[]string{"-run=^TestInvalidParameter$ ./internal/api"},
	},
	{
		"a message has no bound", observed,
		[]edit{{lines, `if n >= most {`, `if n >= most && most == 0 {`}},
		[]string{"-run=^TestLinesAreBounded$ ./internal/ops"},
	},
	{
		"each failed call has a line", observed,
		[]edit{{outages, `case o.logged.IsZero() && now.Sub(o.began) >= outageAfter:`, `case now.Sub(o.began) >= outageAfter:`}},
		[]string{"-run=^TestOutage$ ./internal/ops"},
	},
	{
		"a request's line has its path", observed,
		[]edit{{requests, `slog.String("route", route), slog.Int(`, `slog.String("route", c.OriginalURL()), slog.Int(`}},
		[]string{"-run=^TestRequestLine$ ./internal/api"},
	},
	{
		"a task has no origins", observed,
		[]edit{{headers, `headersOf(notifications))`, `nil)`}},
		[]string{"-run=^TestOrigins$ ./internal/queue"},
	},
	{
		"a notification names the origins of another account's jobs", observed,
		[]edit{{accept, `jobs[accountID], names[accountID])`, `jobs[accountID], names[rows[0].AccountID])`}},
		[]string{"-run=^TestOriginsOfTwoAccounts$ ./internal/job"},
	},
	{
		"the line of a finished job does not name its request", observed,
		[]edit{{tracing, `case !a.lines.reserve(c) && !isTraced:`, `case !isTraced:`}},
		[]string{"-run=^TestObserved$/^Level$ ./internal/test/e2e"},
	},
	{
		"other jobs take the lines of those whose requests have one", observed,
		[]edit{{finishing, `lines = w.others`, `lines = w.lines`}},
		[]string{"-run=^TestFinishedLine_UnderLoad$ ./internal/worker"},
	},
	{
		"an unknown parameter passes", described,
		[]edit{{queries, `case !slices.Contains(known, name):`, `case known == nil && slices.Contains(known, name):`}},
		[]string{fuzzed},
	},
	{
		"a secret keeps the newline that ends its file", deployed,
		[]edit{{files, `text = strings.TrimSuffix(text, "\n")`, `text = strings.TrimSuffix(text, "")`}},
		[]string{"-run=^TestFiles ./internal/config"},
	},
	{
		"a secret in a variable for a path is logged", deployed,
		[]edit{{files, `if filepath.IsAbs(path) {`, `if path != "" || filepath.IsAbs(path) {`}},
		[]string{"-run=^TestFiles_RefuseValue$ ./internal/config"},
	},
	{
		"a process that waits for Postgres is ready", deployed,
		[]edit{{starting, `{Name: "postgres", Required: true} //`, `{Name: "postgres"} //`}},
		[]string{"-run=^TestStart_OperatorsPortIsOpen$ ./internal/test/e2e"},
	},
	{
		"the error of an apply is not counted", seen,
		[]edit{{workerHealth, `w.cfg.Metrics.errors.WithLabelValues(string(reason)).Inc()`, ``}},
		[]string{"-run=^TestApplyErrors$ ./internal/worker"},
	},
	{
		"a worker that can't apply is ready", seen,
		[]edit{{handler, `w.health.recordFault(err)`, ``}},
		[]string{"-run=^TestApplyErrors$ ./internal/worker"},
	},
	{
		"the rights of apply_job's owner are not checked", seen,
		[]edit{{applyRights, `{Privilege: "INSERT", Table: "transactions", By: "apply_job"},`, ``}},
		[]string{"-run=^TestCheckApply$ ./internal/ledger"},
	},
	{
		"a verifier that was cut off keeps its hold", seen,
		[]edit{{"internal/worker/verify.go", `	_ = v.shared.Release(`, `	if !v.held {
		return
	}
	_ = v.shared.Release(`}},
		[]string{"-run=^TestVerifierRun_CutOff$ ./internal/worker"},
	},
	{
		"a Redis that takes no writes is up", seen,
		[]edit{{probing, `p.Set(ctx, keyOf(queues.Name(partition), "probe"), 1, probeLife)`, `_, _ = partition, p.Ping(ctx)`}},
		[]string{"-run=^TestCheckWrites$ ./internal/queue"},
	},
	{
		"a gauge keeps an old value", seen,
		[]edit{{gauges, `time.Now().Before(g.until)`, `!g.until.IsZero()`}},
		[]string{"-run=^TestGauge$ ./internal/ops"},
	},
	{
		"a counter has no series before its first event", seen,
		[]edit{{"internal/api/metrics.go", `m.crowded.WithLabelValues(bound)`, `_ = bound`}},
		[]string{watched},
	},
	{
		"a metric of the pools has another name", seen,
		[]edit{{"internal/ops/metrics.go", `"empty_acquire_wait_seconds_total"`, `"acquire_wait_seconds_total"`}},
		[]string{watched},
	},
	{
		"a health check passes where a process is not ready", deployed,
		[]edit{{health, `err == nil && response.StatusCode != http.StatusOK {`, `err == nil && response.StatusCode == http.StatusNotFound {`}},
		[]string{"-run=^TestStart_OperatorsPortIsOpen$ ./internal/test/e2e"},
	},
	{
		"a server that is cut off is waited for as long as the kernel does", deployed,
		[]edit{{open, `conn.ConnectTimeout = connectTimeout`, `conn.ConnectTimeout = 100 * connectTimeout`}},
		[]string{"-run=^TestOpenWithASilentHost$ ./internal/postgres"},
	},
	{
		"a stop during the wait for Postgres is a failure", deployed,
		[]edit{{starting, `return nil, Stopped(ctx, err)`, `return nil, err`}},
		[]string{"-run=^TestStart_OperatorsPortIsOpen$ ./internal/test/e2e"},
	},
}

// system is the package of the tests of the whole system.
const system = "./internal/test/e2e"

// watched compares what a real Prometheus reads of the processes with docs/metrics.md, dashboards and alerts.
const watched = "-run=^TestPrometheus$ ./internal/test/e2e"

// machine is the ledger's state machine against its model. Its failing examples
// are the mutant's, not ours to keep.
const machine = "-run=^TestLedgerAsTheModel$ ./internal/ledger -rapid.nofailfile -rapid.shrinktime=1s"

// fuzzed sends requests made from openapi.yaml to the whole system.
const fuzzed = "-run=^TestFuzzAPI$ ./internal/test/e2e -fuzz.seed=1 -fuzz.requests=2000"

// everyRoute asks all of the contract for what is not durable.
const everyRoute = "-run=^TestGate_EveryRoute$ ./internal/api"

// badToken tries every route with every bad token.
const badToken = "-run=^TestSecurity_BadToken$ ./internal/api"

// anothers tries every route with what is another user's.
func anothers(what string) string {
	return "-run=^TestSecurity_Anothers" + what + "$ ./internal/api"
}

// refuses is the database on its own, that a rule was taken from.
func refuses(what string) string {
	return "-run=^TestDatabaseRefuses$/^" + what + "$ ./internal/ledger"
}
