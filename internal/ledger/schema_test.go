package ledger_test

import (
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The rules of the bank hold in the database itself, whoever writes to it.
func TestDatabaseRefuses(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	done := ledgertest.Job(t, pool, account, ledger.Deposit, 5)
	apply(t, pool, done)
	rejected := ledgertest.Job(t, pool, account, ledger.Withdrawal, 1000)
	apply(t, pool, rejected)
	ledgertest.Job(t, pool, account, ledger.Deposit, 6)

	const post = `INSERT INTO transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at) `
	const reject = `INSERT INTO rejections (account_id, position, job_id, finished_at, failure) `
	const fail = `INSERT INTO failures (account_id, position, job_id, finished_at, failure) `
	const enqueue = `INSERT INTO queue (account_id, position, job_id) `
	finished := func(insert, state, want string) string {
		return insert + `SELECT account_id, position, job_id, ` + want + ` FROM ` + state + ` WHERE position IS NOT NULL`
	}
	keyed := func(key string) string {
		return `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) SELECT gen_random_uuid(), id, user_id, 'deposit', 1, ` + key + ` FROM accounts`
	}
	numbered := func(number string) string {
		return `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, ` + number + `, currency, now(), now() FROM accounts`
	}
	const toArchive = ledgertest.ToArchive + ` WHERE status = 'succeeded'; `
	altered := func(column, value string) string {
		return ledgertest.UnguardedSQL(`UPDATE archived_jobs SET ` + column + ` = ` + value)
	}
	tests := []struct{ name, sql, want string }{
		{"NegativeBalance", `UPDATE accounts SET balance = -1, last_seq = last_seq + 1, last_at = now() + interval '1 hour'`, "balance_check"},
		{"BalancePastTheLimit", `UPDATE accounts SET balance = 9007199254740992, last_seq = last_seq + 1, last_at = now() + interval '1 hour'`, "balance_check"},
		{"BalanceWithoutHistory", `UPDATE accounts SET balance = balance + 1`, "moves only with its history"},
		{"SeqSkipped", `UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 2, last_at = now() + interval '1 hour'`, "moves only with its history"},
		{"TimeBackwards", `UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 1, last_at = last_at - interval '1 hour'`, "moves only with its history"},
		{"AccountBornRich", `INSERT INTO accounts (user_id, number, currency, balance, last_at, created_at) SELECT user_id, 'rich', currency, 5, now(), now() FROM accounts`, "moves only with its history"},
		{"AccountDeleted", `DELETE FROM accounts`, "outlives"},
		{"AccountRenamed", `UPDATE accounts SET number = 'other'`, "keeps its terms"},
		{"NumberTwice", `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, number, currency, now(), now() FROM accounts`, "accounts_number"},

		{"JobPostedTwice", post + `SELECT account_id, 99, type, amount, 500, id, position, now() FROM job_states WHERE status = 'succeeded'`, "its job is not queued"},
		{"RejectedJobPosted", post + `SELECT account_id, 99, type, 1, 500, id, position, now() FROM job_states WHERE status = 'rejected'`, "its job is not queued"},
		{"PostedAtAnotherPosition", post + `SELECT account_id, 99, type, amount, 500, id, position + 1, now() FROM job_states WHERE status = 'queued'`, "its job is not queued"},
		{"PostedAsAnotherJob", post + `SELECT account_id, 99, type, amount, 500, gen_random_uuid(), position, now() FROM job_states WHERE status = 'queued'`, "its job is not queued"},
		{"PostedAtNoPosition", post + `SELECT account_id, 99, type, amount, 500, id, NULL, now() FROM job_states WHERE status = 'queued'`, "its job is not queued"},
		{"SeqTwice", post + `SELECT account_id, 1, type, amount, 500, id, position, now() FROM job_states WHERE status = 'queued'`, "transactions_pkey"},
		{"SameTimeTwice", post + `SELECT job.account_id, 99, job.type, job.amount, 500, job.id, job.position, entry.created_at FROM job_states job, transactions entry WHERE job.status = 'queued' AND entry.seq = 1`, "transactions_deposit_times"},
		{"PostingWithoutJob", post + `SELECT id, 99, 'deposit', 1, 500, NULL, NULL, now() FROM accounts`, "a transaction has its job"},
		{"InitialDepositAtAPosition", post + `SELECT id, 1, 'deposit', 1, 500, NULL, 99, now() FROM accounts`, "a transaction has its job"},
		{"PostingBeforeTheFirst", post + `SELECT account_id, 0, type, amount, 500, id, position, now() FROM job_states WHERE status = 'queued'`, "a history begins with transaction 1"},
		{"InitialWithdrawal", post + `SELECT id, 1, 'withdrawal', 1, 500, NULL, NULL, now() FROM accounts`, "a transaction has its job"},
		{"NegativeBefore", post + `SELECT account_id, 99, 'deposit', 100, 99, id, position, now() FROM job_states WHERE status = 'queued'`, "no balance was ever negative"},
		{"ZeroAmount", post + `SELECT account_id, 99, type, 0, 500, id, position, now() FROM job_states WHERE status = 'queued'`, "amount_check"},
		{"HistoryChanged", `UPDATE transactions SET amount = amount + 1`, "append-only"},
		{"HistoryDeleted", `DELETE FROM transactions`, "append-only"},
		{"HistoryTruncated", `TRUNCATE transactions`, "append-only"},

		{"SucceededJobQueuedAgain", enqueue + `SELECT account_id, position, job_id FROM transactions WHERE position IS NOT NULL`, "by its accept or replay"},
		{"RejectedJobQueuedAgain", `DELETE FROM rejections`, "never changes"},
		{"SucceededJobRejected", finished(reject, "transactions", `now(), 'x'`), "its job is not queued"},
		{"SucceededJobFailed", finished(fail, "transactions", `now(), 'x'`), "its job is not queued"},
		{"RejectedJobFailed", finished(fail, "rejections", `now(), 'x'`), "its job is not queued"},
		{"RejectionRewritten", `UPDATE rejections SET failure = 'x'`, "never changes"},
		{"RejectionsTruncated", `TRUNCATE rejections`, "never changes"},
		{"FailureRewritten", `UPDATE failures SET failure = 'x'`, "changes by its replay"},
		{"FailuresTruncated", `TRUNCATE failures`, "changes by its replay"},
		{"RejectedWithoutReason", finished(reject, "queue", `now(), NULL`), `null value in column "failure"`},
		{"RejectedAtNoTime", finished(reject, "queue", `NULL, 'x'`), `null value in column "finished_at"`},
		{"FailedAtNoTime", finished(fail, "queue", `NULL, 'x'`), `null value in column "finished_at"`},
		{"FailedWithoutReason", finished(fail, "queue", `now(), NULL`), `null value in column "failure"`},
		{"FailedAsAnotherJob", fail + `SELECT account_id, position, gen_random_uuid(), now(), 'x' FROM queue`, "its job is not queued"},
		{"QueuedJobTakenOut", `DELETE FROM queue`, "leaves it by its outcome"},
		{"QueueTruncated", `TRUNCATE queue`, "leaves the queue by its outcome"},
		{"JobQueuedBeforeTheOthers", enqueue + `SELECT account_id, 0, job_id FROM queue`, "by its accept or replay"},
		{"QueuedJobMoved", `UPDATE queue SET position = 0`, "what was asked never changes"},
		{"QueuedJobExchanged", `UPDATE queue SET job_id = gen_random_uuid()`, "what was asked never changes"},
		{"AttemptsBelowNone", `UPDATE queue SET attempts = -1`, "counted from 0"},
		{"AmountChanged", `UPDATE jobs SET amount = 7`, "what was asked never changes"},
		{"PositionChanged", `UPDATE jobs SET position = 0`, "what was asked never changes"},
		{"JobDeleted", `DELETE FROM jobs`, "answer for good"},
		{"JobsTruncated", `TRUNCATE jobs`, "answer for good"},
		{"QueuedJobArchived", ledgertest.ToArchive + ` WHERE status = 'queued'`, `null value in column "finished_at"`},
		{"FailedJobArchived", finished(fail, "queue", `now(), 'x'`) + `; ` + ledgertest.ToArchive + ` WHERE status = 'failed'`, "archived_jobs_status_check"},
		{"JobArchivedTwice", toArchive + toArchive, "archived_jobs_pkey"},
		{"KeyArchivedTwice", toArchive + altered("id", "gen_random_uuid()") + toArchive, "archived_jobs_key"},
		{"ArchivedJobChanged", toArchive + `UPDATE archived_jobs SET balance_after = 1`, "answer for good"},
		{"ArchivedJobDeleted", toArchive + `DELETE FROM archived_jobs`, "answer for good"},
		{"ArchiveTruncated", `TRUNCATE archived_jobs`, "answer for good"},
		{"KeyMissing", keyed(`''`), "a key is of 1 to 255"},
		{"KeyTooLong", keyed(`repeat('k', 256)`), "a key is of 1 to 255"},
		{"KeyWithASpace", keyed(`'a b'`), "a key is of 1 to 255"},
		{"KeyWithALineBreak", keyed(`E'ab\n'`), "a key is of 1 to 255"},
		{"KeyInAnotherScript", keyed(`'ключ'`), "a key is of 1 to 255"},
		{"DescriptionTooLong", `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, description) SELECT gen_random_uuid(), id, user_id, 'deposit', 1, 'k', repeat('d', 141) FROM accounts`, "a description of 140"},
		{"KeyChanged", `UPDATE jobs SET idempotency_key = ''`, "what was asked never changes"},
		{"DescriptionChanged", `UPDATE jobs SET description = repeat('d', 141)`, "what was asked never changes"},
		{"CurrencyOfTwoLetters", `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, '1234', 'KR', now(), now() FROM accounts`, "a currency of three letters"},
		{"CurrencyChanged", `UPDATE accounts SET currency = 'won'`, "keeps its terms"},
		{"OpenedWithHalfAKey", `INSERT INTO accounts (user_id, number, currency, last_at, created_at, open_key) SELECT user_id, '1234', currency, now(), now(), 'k' FROM accounts`, "a key stands with its request"},
		{"AccountBornWithASeq", `INSERT INTO accounts (user_id, number, currency, last_seq, last_at, created_at) SELECT user_id, '1234', currency, 5, now(), now() FROM accounts`, "moves only with its history"},
		{"NumberTooShort", numbered(`'abc'`), "a number is of 4 to 34"},
		{"NumberTooLong", numbered(`repeat('1', 35)`), "a number is of 4 to 34"},
		{"NumberWithASpace", numbered(`'12 34'`), "a number is of 4 to 34"},
		{"NumberWithALineBreak", numbered(`E'1234\n'`), "a number is of 4 to 34"},
		{"KeyTwice", `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) SELECT gen_random_uuid(), account_id, user_id, type, amount, idempotency_key FROM jobs`, "jobs_key"},
	}
	for _, test := range tests {
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
			_, err := pool.Exec(t.Context(), toArchive+altered(column, value)+`DELETE FROM jobs USING transactions WHERE jobs.id = job_id`)
			if err == nil || !strings.Contains(err.Error(), "DELETE on jobs: a key is an answer for good") {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
	ledgertest.Check(t, pool)
}

// What the archive holds of a job is what job_states shows of it: reads put the two together.
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

// Positions come from one sequence that gives each connection one at a time.
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
