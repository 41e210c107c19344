package ledger

import (
	"fmt"
	"strings"
)

// walk describes how a round reads and verifies a table.
type walk struct {
	table  string
	counts counts
	key    []column // its primary key
	last   string   // selects the highest key, which ends the walk; empty: Round.Bound ends each account
	// sql verifies the rows that follow a key.
	//
	// $1… the key; then the highest key, if last is set; then the limit. It returns the columns of
	// walked for each verified row, in the order of the key.
	//
	// Each LATERAL has a LIMIT, or returns one row, so Postgres looks up each row by an index.
	// Otherwise it might read and sort a whole table.
	sql string
}

// column is a column of a key: its name and its type.
type column struct{ name, typ string }

// first returns the lowest value of the type.
func (c column) first() string {
	switch c.typ {
	case "uuid":
		return "00000000-0000-0000-0000-000000000000"
	case "timestamptz":
		return "-infinity"
	default:
		return "-9223372036854775808"
	}
}

// last is the highest value of the type of a key that ends a walk.
func (c column) last() string {
	if c.typ == "uuid" {
		return "ffffffff-ffff-ffff-ffff-ffffffffffff"
	}
	return "9223372036854775807"
}

// first is a key below every other.
func (w walk) first() (key []string) {
	for _, c := range w.key {
		key = append(key, c.first())
	}
	return key
}

// keySQL reads the key of the row after a key, and no other column.
func (w walk) keySQL() string {
	var names, texts, after []string
	for i, c := range w.key {
		names = append(names, c.name)
		texts = append(texts, c.name+"::text")
		after = append(after, fmt.Sprintf("$%d::text::%s", i+1, c.typ))
	}
	order := strings.Join(names, ", ")
	return fmt.Sprintf(`SELECT ARRAY[%s] FROM %s WHERE (%s) > (%s) ORDER BY %[3]s LIMIT 1`,
		strings.Join(texts, ", "), w.table, order, strings.Join(after, ", "))
}

// counts says what a walk's rows are: all are counted as rows, and some as a kind of their own.
type counts int

const (
	countsRows counts = iota
	countsAccounts
	countsTransactions
	countsJobs
)

// The columns of keys.
var (
	byID       = column{"id", "bigint"}
	byUUID     = column{"id", "uuid"}
	byAccount  = column{"account_id", "bigint"}
	bySeq      = column{"seq", "bigint"}
	byPosition = column{"position", "bigint"}
	byTime     = column{"at", "timestamptz"}
)

// walks are the walks of a round, in order. Each outcome must name a job with the outcome's account
// and position. Each job must have exactly one outcome at its account and position. So each outcome
// has a job, each job has an outcome, and no two jobs share an outcome or a position.
var walks = []walk{
	{"accounts", countsAccounts, []column{byID}, `SELECT max(id) FROM accounts`, accountsWalkSQL},
	{"transactions", countsTransactions, []column{byAccount, bySeq}, "", transactionsWalkSQL},
	{"jobs", countsJobs, []column{byUUID}, `SELECT id FROM jobs ORDER BY id DESC LIMIT 1`, jobsWalkSQL},
	{"archived_jobs", countsJobs, []column{byUUID}, `SELECT id FROM archived_jobs ORDER BY id DESC LIMIT 1`, archivedJobsWalkSQL},
	{"queue", countsRows, []column{byAccount, byPosition}, "", queueWalkSQL},
	{"rejections", countsRows, []column{byAccount, byPosition}, "", rejectionsWalkSQL},
	{"failures", countsRows, []column{byAccount, byPosition}, "", failuresWalkSQL},
	{"operator_actions", countsRows, []column{byAccount, byTime}, "", actionsWalkSQL},
}

// tables returns the tables that a round verifies.
func tables() (names []string) {
	for _, walk := range walks {
		names = append(names, walk.table)
	}
	return names
}

// becomesSQL is the status that an action sets.
const becomesSQL = `CASE action WHEN 'freeze' THEN 'frozen' WHEN 'close' THEN 'closed' ELSE 'open' END`

// accountsWalkSQL compares each account with its last transaction and with its last action.
const accountsWalkSQL = `
	SELECT ARRAY[walked.id::text], walked.number, 0::bigint, array_remove(ARRAY[
		CASE WHEN walked.balance <> coalesce(latest.balance_after, 0)
			THEN format('balance %s, its history makes %s', walked.balance, coalesce(latest.balance_after, 0)) END,
		CASE WHEN walked.last_seq <> coalesce(latest.seq, 0)
			THEN format('last_seq %s, its history ends at %s', walked.last_seq, coalesce(latest.seq, 0)) END,
		CASE WHEN walked.last_at <> latest.created_at
			THEN format('last_at %s, its history ends %s', walked.last_at, latest.created_at) END,
		CASE WHEN walked.status::text <> coalesce(made.status, 'open')
			THEN format('is %s, its operators made it %s', walked.status, coalesce(made.status, 'open')) END
	], NULL), 0::bigint
	FROM (
		SELECT id, number, balance, last_seq, last_at, status FROM accounts
		WHERE id > $1::text::bigint AND id <= $2::text::bigint ORDER BY id LIMIT $3
	) walked
	LEFT JOIN LATERAL (
		SELECT seq, balance_after, created_at FROM transactions WHERE account_id = walked.id ORDER BY seq DESC LIMIT 1
	) latest ON true
	LEFT JOIN LATERAL (
		SELECT ` + becomesSQL + ` AS status FROM operator_actions
		WHERE account_id = walked.id AND action <> 'replay' ORDER BY at DESC LIMIT 1
	) made ON true
	ORDER BY walked.id`

// accountSQL looks up the account of a row, and accountNameSQL names it.
const (
	accountSQL     = ` LEFT JOIN LATERAL (SELECT number FROM accounts WHERE id = walked.account_id LIMIT 1) account ON true `
	accountNameSQL = `coalesce(account.number, 'with id ' || walked.account_id)`
)

// jobSQL looks up the job that an outcome's row names. strayedSQL reports a job that does not exist or
// has another account or position.
const (
	jobSQL = `
		LEFT JOIN LATERAL (
			SELECT account_id, position FROM jobs WHERE id = walked.job_id UNION ALL
			SELECT account_id, position FROM archived_jobs WHERE id = walked.job_id LIMIT 1
		) job ON true `
	strayedSQL = `
		CASE WHEN job.account_id IS NULL
			THEN format('job %s is %s but does not exist', walked.job_id, walked.status)
		WHEN (job.account_id, job.position) IS DISTINCT FROM (walked.account_id, walked.position)
			THEN format('job %s is %s at a position that is not its own', walked.job_id, walked.status) END`
)

// transactionsWalkSQL compares each transaction with the one before it, and looks up its account and
// its job.
const transactionsWalkSQL = `
	SELECT ARRAY[walked.account_id::text, walked.seq::text], ` + accountNameSQL + `, coalesce(walked.position, 0), array_remove(ARRAY[
		CASE WHEN account.number IS NULL
			THEN format('transaction %s belongs to no account', walked.seq) END,
		CASE WHEN walked.seq <> coalesce(earlier.seq, 0) + 1
			THEN format('transaction %s stands where %s should', walked.seq, coalesce(earlier.seq, 0) + 1) END,
		CASE WHEN walked.balance_after <> coalesce(earlier.balance_after, 0) + walked.moved
			THEN format('transaction %s says balance_after %s, its history makes %s',
				walked.seq, walked.balance_after, coalesce(earlier.balance_after, 0) + walked.moved) END,
		CASE WHEN walked.created_at <= earlier.created_at
			THEN format('transaction %s is dated %s, not after the one before it', walked.seq, walked.created_at) END,
		CASE WHEN walked.job_id IS NOT NULL THEN ` + strayedSQL + ` END
	], NULL), 0::bigint
	FROM (
		SELECT account_id, seq, CASE type WHEN 'deposit' THEN amount ELSE -amount END AS moved, balance_after, created_at,
			job_id, position, 'succeeded' AS status
		FROM transactions
		WHERE (account_id, seq) > ($1::text::bigint, $2::text::bigint) ORDER BY account_id, seq LIMIT $3
	) walked
	LEFT JOIN LATERAL (
		SELECT seq, balance_after, created_at FROM transactions
		WHERE account_id = walked.account_id AND seq < walked.seq ORDER BY seq DESC LIMIT 1
	) earlier ON true` + accountSQL + jobSQL + `
	ORDER BY walked.account_id, walked.seq`

// The walks through rejections, failures and the queue.
const (
	queueWalkSQL      = stateWalkSQL + `NULL], NULL), 0::bigint FROM (SELECT account_id, position, job_id, 'queued' AS status FROM queue` + stateOrderSQL
	failuresWalkSQL   = stateWalkSQL + `NULL], NULL), 0::bigint FROM (SELECT account_id, position, job_id, 'failed' AS status FROM failures` + stateOrderSQL
	rejectionsWalkSQL = stateWalkSQL + unfoundedSQL + `], NULL), 0::bigint
		FROM (SELECT account_id, position, job_id, 'rejected' AS status, failure, finished_at FROM rejections` + stateOrderSQL

	stateWalkSQL = `SELECT ARRAY[walked.account_id::text, walked.position::text], ` + accountNameSQL + `, walked.position, array_remove(ARRAY[` +
		strayedSQL + `, `
	stateOrderSQL = ` WHERE (account_id, position) > ($1::text::bigint, $2::text::bigint) ORDER BY account_id, position LIMIT $3) walked` +
		accountSQL + jobSQL + `ORDER BY walked.account_id, walked.position`
)

// unfoundedSQL reports a rejection for a status that the account never had before it.
const unfoundedSQL = `
	CASE WHEN walked.failure IN ('account_frozen', 'account_closed') AND NOT EXISTS (
		SELECT FROM operator_actions WHERE account_id = walked.account_id AND at < walked.finished_at AND 'account_' || ` + becomesSQL + ` = walked.failure)
		THEN format('job %s is rejected for a status that its account did not have', walked.job_id) END`

// nextPositionSQL reads the sequence's next position after the statement took its snapshot. It is
// higher than all positions in the snapshot, unless the sequence is behind.
const nextPositionSQL = `(SELECT last_value + is_called::int FROM job_positions)`

// The walks through the jobs, archived or not.
//
// atPositionSQL looks up the rows at a job's account and position: at most one a table, because of a
// unique index. outcomes are those of this job; others are the other jobs that such rows name. atSQL
// orders by position, which only that index supports. Without it a plan made while a table is empty
// may use another index of the account for good.
const (
	atSQL         = `account_id = walked.account_id AND position BETWEEN walked.position AND walked.position ORDER BY position LIMIT 1`
	atPositionSQL = `
		LEFT JOIN LATERAL (SELECT job_id FROM failures WHERE ` + atSQL + `) failure ON true
		LEFT JOIN LATERAL (SELECT job_id FROM queue WHERE ` + atSQL + `) queued ON true
		LEFT JOIN LATERAL (SELECT job_id FROM rejections WHERE ` + atSQL + `) rejection ON true
		LEFT JOIN LATERAL (
			SELECT id AS job_id FROM archived_jobs WHERE status = 'rejected' AND ` + atSQL + `
		) archived_rejection ON true
		LEFT JOIN LATERAL (
			SELECT job_id, type, amount, description, seq, balance_after, created_at FROM transactions WHERE ` + atSQL + `
		) entry ON true
		CROSS JOIN LATERAL (
			SELECT nullif(concat_ws(' and ',
				CASE WHEN failure.job_id = walked.job_id THEN 'failed' END, CASE WHEN queued.job_id = walked.job_id THEN 'queued' END,
				CASE WHEN rejection.job_id = walked.job_id THEN 'rejected' END, CASE WHEN entry.job_id = walked.job_id THEN 'succeeded' END), '') AS outcomes,
			nullif(concat_ws(', ', nullif(failure.job_id, walked.job_id), nullif(queued.job_id, walked.job_id), nullif(rejection.job_id, walked.job_id),
				nullif(archived_rejection.job_id, walked.job_id), nullif(entry.job_id, walked.job_id)), '') AS others
			OFFSET 0
		) found ` + accountSQL

	// faultsOfJobSQL reports the faults that both walks look for.
	faultsOfJobSQL = `
		CASE WHEN account.number IS NULL
			THEN format('job %s belongs to no account', walked.job_id) END,
		CASE WHEN found.others IS NOT NULL
			THEN format('job %s stands at the position of job %s', walked.job_id, found.others) END`

	jobsWalkSQL = `
		SELECT ARRAY[walked.job_id::text], ` + accountNameSQL + `, walked.position, array_remove(ARRAY[` + faultsOfJobSQL + `,
			CASE WHEN archived.id IS NOT NULL
				THEN format('job %s is archived, and still there', walked.job_id)
			WHEN found.outcomes IS NULL
				THEN format('job %s is not queued, and has no transaction, rejection or failure', walked.job_id)
			WHEN found.outcomes LIKE '% and %'
				THEN format('job %s is %s', walked.job_id, found.outcomes) END,
			CASE WHEN entry.job_id = walked.job_id AND
				(walked.type, walked.amount, walked.description) IS DISTINCT FROM (entry.type, entry.amount, entry.description)
				THEN format('job %s and its transaction say different things', walked.job_id) END,
			CASE WHEN of_key.id IS NOT NULL
				THEN format('job %s has the key of an archived one', walked.job_id) END
		], NULL), ` + nextPositionSQL + `
		FROM (
			SELECT id AS job_id, account_id, position, user_id, idempotency_key, type, amount, description FROM jobs
			WHERE id > $1::text::uuid AND id <= $2::text::uuid ORDER BY id LIMIT $3
		) walked
		LEFT JOIN LATERAL (SELECT id FROM archived_jobs WHERE id = walked.job_id LIMIT 1) archived ON true
		LEFT JOIN LATERAL (
			SELECT id FROM archived_jobs WHERE user_id = walked.user_id AND idempotency_key = walked.idempotency_key LIMIT 1
		) of_key ON true` + atPositionSQL + `
		ORDER BY walked.job_id`

	archivedJobsWalkSQL = `
		SELECT ARRAY[walked.job_id::text], ` + accountNameSQL + `, walked.position, array_remove(ARRAY[` + faultsOfJobSQL + `,
			CASE WHEN walked.status = 'succeeded' AND found.outcomes IS DISTINCT FROM 'succeeded'
				THEN format('job %s is archived as succeeded, and %s', walked.job_id, coalesce(found.outcomes, 'has no transaction'))
			WHEN walked.status = 'rejected' AND found.outcomes = 'rejected'
				THEN format('job %s is archived as rejected, and its rejection is still there', walked.job_id)
			WHEN walked.status = 'rejected' AND found.outcomes IS NOT NULL
				THEN format('job %s is archived as rejected, and %s', walked.job_id, found.outcomes) END,
			CASE WHEN entry.job_id = walked.job_id AND
				(walked.type, walked.amount, walked.description, walked.seq, walked.balance_after, walked.finished_at)
				IS DISTINCT FROM (entry.type, entry.amount, entry.description, entry.seq, entry.balance_after, entry.created_at)
				THEN format('job %s and its transaction say different things', walked.job_id) END,` + unfoundedSQL + `
		], NULL), ` + nextPositionSQL + `
		FROM (
			SELECT id AS job_id, account_id, position, type, amount, description, status, failure, seq, balance_after, finished_at FROM archived_jobs
			WHERE id > $1::text::uuid AND id <= $2::text::uuid ORDER BY id LIMIT $3
		) walked` + atPositionSQL + `
		ORDER BY walked.job_id`
)

// actionsWalkSQL compares each freeze, unfreeze and close with the action before it, and looks for a
// transaction that happened while the account was not open.
const actionsWalkSQL = `
	SELECT ARRAY[walked.account_id::text, walked.at::text], ` + accountNameSQL + `, 0::bigint, array_remove(ARRAY[
		CASE WHEN walked.action <> 'replay' AND coalesce(earlier.status, 'open') IN (walked.status, 'closed')
			THEN format('action %s of %s found it %s', walked.action, walked.at, coalesce(earlier.status, 'open')) END,
		CASE WHEN moved.seq IS NOT NULL
			THEN format('transaction %s happened while it was %s', moved.seq, walked.status) END
	], NULL), 0::bigint
	FROM (
		SELECT account_id, at, action, ` + becomesSQL + ` AS status FROM operator_actions
		WHERE (account_id, at) > ($1::text::bigint, $2::text::timestamptz) ORDER BY account_id, at LIMIT $3
	) walked
	LEFT JOIN LATERAL (
		SELECT ` + becomesSQL + ` AS status FROM operator_actions
		WHERE account_id = walked.account_id AND at < walked.at AND action <> 'replay' ORDER BY at DESC LIMIT 1
	) earlier ON true
	LEFT JOIN LATERAL (
		SELECT at FROM operator_actions WHERE account_id = walked.account_id AND at > walked.at AND action <> 'replay' ORDER BY at LIMIT 1
	) later ON true
	LEFT JOIN LATERAL (
		SELECT seq FROM transactions WHERE walked.status <> 'open' AND account_id = walked.account_id AND type = 'deposit'
			AND created_at > walked.at AND created_at < coalesce(later.at, 'infinity') UNION ALL
		SELECT seq FROM transactions WHERE walked.status <> 'open' AND account_id = walked.account_id AND type = 'withdrawal'
			AND created_at > walked.at AND created_at < coalesce(later.at, 'infinity') LIMIT 1
	) moved ON true` + accountSQL + `
	ORDER BY walked.account_id, walked.at`
