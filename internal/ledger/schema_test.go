package ledger_test

import (
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
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

	const post = `INSERT INTO transactions (account_id, seq, type, amount, balance_after, job_id, created_at) `
	keyed := func(key string) string {
		return `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key) SELECT gen_random_uuid(), id, user_id, 'deposit', 1, ` + key + ` FROM accounts`
	}
	numbered := func(number string) string {
		return `INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, ` + number + `, currency, now(), now() FROM accounts`
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

		{"JobPostedTwice", post + `SELECT account_id, 99, type, amount, 500, id, now() FROM jobs WHERE status = 'succeeded'`, "transactions_posting"},
		{"SeqTwice", post + `SELECT account_id, 1, type, amount, 500, id, now() FROM jobs WHERE status = 'queued'`, "transactions_pkey"},
		{"SameTimeTwice", post + `SELECT job.account_id, 99, job.type, job.amount, 500, job.id, entry.created_at FROM jobs job, transactions entry WHERE job.status = 'queued' AND entry.seq = 1`, "transactions_time"},
		{"PostingWithoutJob", post + `SELECT id, 99, 'deposit', 1, 500, NULL, now() FROM accounts`, "transactions_check"},
		{"NegativeBefore", post + `SELECT account_id, 99, 'deposit', 100, 99, id, now() FROM jobs WHERE status = 'queued'`, "transactions_check"},
		{"ZeroAmount", post + `SELECT account_id, 99, type, 0, 500, id, now() FROM jobs WHERE status = 'queued'`, "amount_check"},
		{"HistoryChanged", `UPDATE transactions SET amount = amount + 1`, "append-only"},
		{"HistoryDeleted", `DELETE FROM transactions`, "append-only"},
		{"HistoryTruncated", `TRUNCATE transactions`, "append-only"},

		{"SucceededJobQueuedAgain", `UPDATE jobs SET status = 'queued', seq = NULL, balance_after = NULL, finished_at = NULL WHERE status = 'succeeded'`, "never changes"},
		{"RejectedJobQueuedAgain", `UPDATE jobs SET status = 'queued', failure = NULL, finished_at = NULL WHERE status = 'rejected'`, "never changes"},
		{"SucceededJobFailed", `UPDATE jobs SET status = 'failed', failure = 'x', seq = NULL, balance_after = NULL WHERE status = 'succeeded'`, "never changes"},
		{"FinishedJobRewritten", `UPDATE jobs SET balance_after = 1 WHERE status = 'succeeded'`, "never changes"},
		{"SucceededWithoutTransaction", `UPDATE jobs SET status = 'succeeded', finished_at = now() WHERE status = 'queued'`, "jobs_check"},
		{"RejectedWithoutReason", `UPDATE jobs SET status = 'rejected', finished_at = now() WHERE status = 'queued'`, "jobs_check"},
		{"AmountChanged", `UPDATE jobs SET amount = 7 WHERE status = 'queued'`, "what was asked never changes"},
		{"PositionChanged", `UPDATE jobs SET position = 0 WHERE status = 'queued'`, "what was asked never changes"},
		{"JobDeleted", `DELETE FROM jobs`, "answer for good"},
		{"JobBornFinished", `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, status, failure, finished_at) SELECT gen_random_uuid(), id, user_id, 'deposit', 1, 'k', 'rejected', 'x', now() FROM accounts`, "starts queued"},
		{"KeyMissing", keyed(`''`), "jobs_idempotency_key_form"},
		{"KeyTooLong", keyed(`repeat('k', 256)`), "jobs_idempotency_key_form"},
		{"KeyWithASpace", keyed(`'a b'`), "jobs_idempotency_key_form"},
		{"KeyWithALineBreak", keyed(`E'ab\n'`), "jobs_idempotency_key_form"},
		{"KeyInAnotherScript", keyed(`'ключ'`), "jobs_idempotency_key_form"},
		{"NumberTooShort", numbered(`'abc'`), "accounts_number_form"},
		{"NumberTooLong", numbered(`repeat('1', 35)`), "accounts_number_form"},
		{"NumberWithASpace", numbered(`'12 34'`), "accounts_number_form"},
		{"NumberWithALineBreak", numbered(`E'1234\n'`), "accounts_number_form"},
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
	ledgertest.Check(t, pool)
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
