package ledger_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The database itself refuses what breaks the rules of the bank, whichever program writes to it.
func TestDatabaseRefuses(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	done := ledgertest.Job(t, pool, account, ledger.Deposit, 5)
	apply(t, pool, done)
	rejected := ledgertest.Job(t, pool, account, ledger.Withdrawal, 1000)
	apply(t, pool, rejected)
	ledgertest.Job(t, pool, account, ledger.Deposit, 6)
	for _, test := range slices.Concat(refusedAccounts, refusedActions, refusedTransactions, refusedJobs, refusedInArchive, refusedKeys) {
		t.Run(test.name, func(t *testing.T) {
			_, err := pool.Exec(t.Context(), test.sql)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a refusal with %q", err, test.want)
			}
		})
	}
	for column, value := range map[string]string{
		"id": "gen_random_uuid()", "position": "0", "account_id": "0", "user_id": "gen_random_uuid()", "amount": "7", "created_at": "now()",
		"finished_at": "now()", "seq": "7", "balance_after": "7", "type": "'withdrawal'", "status": "'rejected'",
		"idempotency_key": "'other'", "description": "'other'", "failure": "'other'",
	} {
		t.Run("JobDeletedThatIsArchivedWithAnother/"+column, func(t *testing.T) {
			_, err := pool.Exec(t.Context(), succeededToArchive+alteredSQL(column, value)+`DELETE FROM jobs USING transactions WHERE jobs.id = job_id`)
			if err == nil || !strings.Contains(err.Error(), "DELETE on jobs: a key is an answer for good") {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
	ledgertest.Check(t, pool)
}

// refusal is a statement that the database must refuse, and what its error contains.
type refusal struct{ name, sql, want string }

const (
	recordSQL  = `INSERT INTO transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at) `
	rejectSQL  = `INSERT INTO rejections (account_id, position, job_id, finished_at, failure) `
	failSQL    = `INSERT INTO failures (account_id, position, job_id, finished_at, failure) `
	enqueueSQL = `INSERT INTO queue (account_id, position, job_id) `

	succeededToArchive = ledgertest.ToArchive + ` WHERE status = 'succeeded'; `
)

// finishedSQL inserts an outcome of the jobs that have another state.
func finishedSQL(insert, state, want string) string {
	return insert + `SELECT account_id, position, job_id, ` + want + ` FROM ` + state + ` WHERE position IS NOT NULL`
}

func keyedSQL(key string) string {
	return `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) SELECT gen_random_uuid(), id, user_id, 'deposit', 1, ` + key + ` FROM accounts`
}

func numberedSQL(number string) string {
	return `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, ` + number + `, currency, now(), now() FROM accounts`
}

// alteredSQL changes a column of the archive with the rules disabled.
func alteredSQL(column, value string) string {
	return ledgertest.UnguardedSQL(`UPDATE archived_jobs SET ` + column + ` = ` + value)
}

// refusedAccounts are statements against accounts.
var refusedAccounts = []refusal{
	{"NegativeBalance", `UPDATE accounts SET balance = -1, last_seq = last_seq + 1, last_at = now() + interval '1 hour'`, "balance_check"},
	{"BalancePastTheLimit", `UPDATE accounts SET balance = 9007199254740992, last_seq = last_seq + 1, last_at = now() + interval '1 hour'`, "balance_check"},
	{"BalanceWithoutHistory", `UPDATE accounts SET balance = balance + 1`, "moves only with its history"},
	{"SeqSkipped", `UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 2, last_at = now() + interval '1 hour'`, "moves only with its history"},
	{"TimeBackwards", `UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 1, last_at = last_at - interval '1 hour'`, "moves only with its history"},
	{"AccountBornRich", `INSERT INTO accounts (user_id, number, currency, balance, last_at, created_at) SELECT user_id, 'rich', currency, 5, now(), now() FROM accounts`, "moves only with its history"},
	{"AccountDeleted", `DELETE FROM accounts`, "outlives"},
	{"AccountRenamed", `UPDATE accounts SET number = 'other'`, "keeps its terms"},
	{"NumberTwice", `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, number, currency, now(), now() FROM accounts`, "accounts_number"},
	{"CurrencyOfTwoLetters", `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, '1234', 'KR', now(), now() FROM accounts`, "a currency of three letters"},
	{"CurrencyChanged", `UPDATE accounts SET currency = 'won'`, "keeps its terms"},
	{"OpenedWithHalfAKey", `INSERT INTO accounts (user_id, number, currency, last_at, created_at, open_key) SELECT user_id, '1234', currency, now(), now(), 'k' FROM accounts`, "a key stands with its request"},
	{"AccountBornWithASeq", `INSERT INTO accounts (user_id, number, currency, last_seq, last_at, created_at) SELECT user_id, '1234', currency, 5, now(), now() FROM accounts`, "moves only with its history"},
	{"AccountBornFrozen", `INSERT INTO accounts (user_id, number, currency, status, last_at, created_at) SELECT user_id, '1234', currency, 'frozen', now(), now() FROM accounts`, "begins open"},
	{"StatusByItself", `UPDATE accounts SET status = 'frozen'`, "changes by an operator's action"},
	{"BalanceOfAFrozenAccount", freezeSQL + `UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 1, last_at = now() + interval '1 hour'`, "on an open account"},
	{"BalanceMovedWhileItIsOpened", freezeSQL + `UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 1, last_at = now() + interval '1 hour', status = 'open'`, "changes by an operator's action"},
	{"NumberTooShort", numberedSQL(`'abc'`), "a number is of 4 to 34"},
	{"NumberTooLong", numberedSQL(`repeat('1', 35)`), "a number is of 4 to 34"},
	{"NumberWithASpace", numberedSQL(`'12 34'`), "a number is of 4 to 34"},
	{"NumberWithALineBreak", numberedSQL(`E'1234\n'`), "a number is of 4 to 34"},
}

// actSQL has an operator act on the one account, and freezeSQL freezes it.
const (
	actSQL    = `INSERT INTO operator_actions (account_id, person, reason, action) SELECT id, 'ann', 'x', `
	freezeSQL = actSQL + `'freeze' FROM accounts; `
)

// refusedActions are actions of operators, and statements against them.
var refusedActions = []refusal{
	{"ClosedAccountOpened", actSQL + `'close' FROM accounts; ` + actSQL + `'unfreeze' FROM accounts`, "a closed account stays closed"},
	{"ClosedAccountFrozen", actSQL + `'close' FROM accounts; ` + freezeSQL, "a closed account stays closed"},
	{"ActionOnNoAccount", `INSERT INTO operator_actions (account_id, person, reason, action) VALUES (-1, 'ann', 'x', 'freeze')`, "account -1 is not there"},
	{"ActionOfNoPerson", `INSERT INTO operator_actions (account_id, person, reason, action) SELECT id, '', 'x', 'freeze' FROM accounts`, "person_check"},
	{"ActionWithoutReason", `INSERT INTO operator_actions (account_id, person, reason, action) SELECT id, 'ann', '', 'freeze' FROM accounts`, "reason_check"},
	{"FreezeOfAJob", `INSERT INTO operator_actions (account_id, person, reason, action, job_id) SELECT account_id, 'ann', 'x', 'freeze', id FROM jobs LIMIT 1`, "operator_actions_check"},
	{"ActionChanged", freezeSQL + `UPDATE operator_actions SET reason = 'other'`, "stays written"},
	{"ActionDeleted", freezeSQL + `DELETE FROM operator_actions`, "stays written"},
	{"ActionsTruncated", `TRUNCATE operator_actions`, "stays written"},
	{"FailedJobReplayedByItself", finishedSQL(failSQL, "queue", `now(), 'x'`) + `; DELETE FROM failures`, "replayed by an operator's action"},
}

// refusedTransactions are statements against transactions.
var refusedTransactions = []refusal{
	{"JobRecordedTwice", recordSQL + `SELECT account_id, 99, type, amount, 500, id, position, now() FROM job_states WHERE status = 'succeeded'`, "its job is not queued"},
	{"RejectedJobRecorded", recordSQL + `SELECT account_id, 99, type, 1, 500, id, position, now() FROM job_states WHERE status = 'rejected'`, "its job is not queued"},
	{"RecordedAtAnotherPosition", recordSQL + `SELECT account_id, 99, type, amount, 500, id, position + 1, now() FROM job_states WHERE status = 'queued'`, "its job is not queued"},
	{"RecordedAsAnotherJob", recordSQL + `SELECT account_id, 99, type, amount, 500, gen_random_uuid(), position, now() FROM job_states WHERE status = 'queued'`, "its job is not queued"},
	{"RecordedAtNoPosition", recordSQL + `SELECT account_id, 99, type, amount, 500, id, NULL, now() FROM job_states WHERE status = 'queued'`, "its job is not queued"},
	{"SeqTwice", recordSQL + `SELECT account_id, 1, type, amount, 500, id, position, now() FROM job_states WHERE status = 'queued'`, "transactions_pkey"},
	{"SameTimeTwice", recordSQL + `SELECT job.account_id, 99, job.type, job.amount, 500, job.id, job.position, first.created_at FROM job_states job, transactions first WHERE job.status = 'queued' AND first.seq = 1`, "transactions_deposit_times"},
	{"TransactionWithoutJob", recordSQL + `SELECT id, 99, 'deposit', 1, 500, NULL, NULL, now() FROM accounts`, "a transaction has its job"},
	{"InitialDepositAtAPosition", recordSQL + `SELECT id, 1, 'deposit', 1, 500, NULL, 99, now() FROM accounts`, "a transaction has its job"},
	{"TransactionBeforeTheFirst", recordSQL + `SELECT account_id, 0, type, amount, 500, id, position, now() FROM job_states WHERE status = 'queued'`, "a history begins with transaction 1"},
	{"InitialWithdrawal", recordSQL + `SELECT id, 1, 'withdrawal', 1, 500, NULL, NULL, now() FROM accounts`, "a transaction has its job"},
	{"NegativeBefore", recordSQL + `SELECT account_id, 99, 'deposit', 100, 99, id, position, now() FROM job_states WHERE status = 'queued'`, "no balance was ever negative"},
	{"ZeroAmount", recordSQL + `SELECT account_id, 99, type, 0, 500, id, position, now() FROM job_states WHERE status = 'queued'`, "amount_check"},
	{"HistoryChanged", `UPDATE transactions SET amount = amount + 1`, "append-only"},
	{"HistoryDeleted", `DELETE FROM transactions`, "append-only"},
	{"HistoryTruncated", `TRUNCATE transactions`, "append-only"},
}

// refusedJobs are statements against jobs and their states.
var refusedJobs = []refusal{
	{"SucceededJobQueuedAgain", enqueueSQL + `SELECT account_id, position, job_id FROM transactions WHERE position IS NOT NULL`, "by its accept or replay"},
	{"RejectedJobQueuedAgain", `DELETE FROM rejections`, "never changes"},
	{"SucceededJobRejected", finishedSQL(rejectSQL, "transactions", `now(), 'x'`), "its job is not queued"},
	{"SucceededJobFailed", finishedSQL(failSQL, "transactions", `now(), 'x'`), "its job is not queued"},
	{"RejectedJobFailed", finishedSQL(failSQL, "rejections", `now(), 'x'`), "its job is not queued"},
	{"RejectionRewritten", `UPDATE rejections SET failure = 'x'`, "never changes"},
	{"RejectionsTruncated", `TRUNCATE rejections`, "never changes"},
	{"FailureRewritten", `UPDATE failures SET failure = 'x'`, "changes by its replay"},
	{"FailuresTruncated", `TRUNCATE failures`, "changes by its replay"},
	{"RejectedWithoutReason", finishedSQL(rejectSQL, "queue", `now(), NULL`), `null value in column "failure"`},
	{"RejectedAtNoTime", finishedSQL(rejectSQL, "queue", `NULL, 'x'`), `null value in column "finished_at"`},
	{"FailedAtNoTime", finishedSQL(failSQL, "queue", `NULL, 'x'`), `null value in column "finished_at"`},
	{"FailedWithoutReason", finishedSQL(failSQL, "queue", `now(), NULL`), `null value in column "failure"`},
	{"FailedAsAnotherJob", failSQL + `SELECT account_id, position, gen_random_uuid(), now(), 'x' FROM queue`, "its job is not queued"},
	{"QueuedJobTakenOut", `DELETE FROM queue`, "leaves it by its outcome"},
	{"QueueTruncated", `TRUNCATE queue`, "leaves the queue by its outcome"},
	{"JobQueuedBeforeTheOthers", enqueueSQL + `SELECT account_id, 0, job_id FROM queue`, "by its accept or replay"},
	{"QueuedJobMoved", `UPDATE queue SET position = 0`, "what was asked never changes"},
	{"QueuedJobExchanged", `UPDATE queue SET job_id = gen_random_uuid()`, "what was asked never changes"},
	{"AttemptsBelowNone", `UPDATE queue SET attempts = -1`, "counted from 0"},
	{"AmountChanged", `UPDATE jobs SET amount = 7`, "what was asked never changes"},
	{"PositionChanged", `UPDATE jobs SET position = 0`, "what was asked never changes"},
	{"JobDeleted", `DELETE FROM jobs`, "answer for good"},
	{"JobsTruncated", `TRUNCATE jobs`, "answer for good"},
}

// refusedInArchive are statements against the archive.
var refusedInArchive = []refusal{
	{"QueuedJobArchived", ledgertest.ToArchive + ` WHERE status = 'queued'`, `null value in column "finished_at"`},
	{"FailedJobArchived", finishedSQL(failSQL, "queue", `now(), 'x'`) + `; ` + ledgertest.ToArchive + ` WHERE status = 'failed'`, "archived_jobs_status_check"},
	{"JobArchivedTwice", succeededToArchive + succeededToArchive, "archived_jobs_pkey"},
	{"KeyArchivedTwice", succeededToArchive + alteredSQL("id", "gen_random_uuid()") + succeededToArchive, "archived_jobs_key"},
	{"ArchivedJobChanged", succeededToArchive + `UPDATE archived_jobs SET balance_after = 1`, "answer for good"},
	{"ArchivedJobDeleted", succeededToArchive + `DELETE FROM archived_jobs`, "answer for good"},
	{"ArchiveTruncated", `TRUNCATE archived_jobs`, "answer for good"},
}

// refusedKeys are statements with or against keys and descriptions of jobs.
var refusedKeys = []refusal{
	{"KeyMissing", keyedSQL(`''`), "a key is of 1 to 255"},
	{"KeyTooLong", keyedSQL(`repeat('k', 256)`), "a key is of 1 to 255"},
	{"KeyWithASpace", keyedSQL(`'a b'`), "a key is of 1 to 255"},
	{"KeyWithALineBreak", keyedSQL(`E'ab\n'`), "a key is of 1 to 255"},
	{"KeyInAnotherScript", keyedSQL(`'ключ'`), "a key is of 1 to 255"},
	{"DescriptionTooLong", `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, description) SELECT gen_random_uuid(), id, user_id, 'deposit', 1, 'k', repeat('d', 141) FROM accounts`, "a description of 140"},
	{"KeyChanged", `UPDATE jobs SET idempotency_key = ''`, "what was asked never changes"},
	{"DescriptionChanged", `UPDATE jobs SET description = repeat('d', 141)`, "what was asked never changes"},
	{"KeyTwice", `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) SELECT gen_random_uuid(), account_id, user_id, type, amount, idempotency_key FROM jobs`, "jobs_key"},
}

// archived_jobs has the columns of job_states, since reads combine the two.
func TestArchiveIsLikeJobs(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	const sql = `SELECT string_agg(format('%s %s %s', attname, format_type(atttypid, atttypmod), attcollation), ', ' ORDER BY attnum)
		FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attname <> ALL ($2)`
	var live, archived string
	for table, columns := range map[string]*string{"job_states": &live, "archived_jobs": &archived} {
		if err := pool.QueryRow(t.Context(), sql, table, []string{"attempts", "accepted_by", "finished_by"}).Scan(columns); err != nil {
			t.Fatal(err)
		}
	}
	if live != archived {
		t.Errorf("job_states has %s\narchived_jobs has %s", live, archived)
	}
}

// The sequence of positions is not cached: it gives a connection one position at a time.
func TestPositionsAreNotCached(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	var cache int64
	if err := pool.QueryRow(t.Context(), `SELECT seqcache FROM pg_sequence WHERE seqrelid = 'job_positions'::regclass`).Scan(&cache); err != nil {
		t.Fatal(err)
	}
	if cache != 1 {
		t.Errorf("job_positions caches %d values a connection, want 1", cache)
	}
}
