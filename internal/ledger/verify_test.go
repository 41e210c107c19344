package ledger_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// actedSQL inserts an action so many microseconds after the account's last transaction.
func actedSQL(action string, after int) string {
	return fmt.Sprintf(`INSERT INTO operator_actions (account_id, at, action, person, role, reason)
		SELECT account_id, created_at + %d * interval '1 microsecond', '%s', 'ann', 'ann', 'x' FROM transactions WHERE seq = 3; `, after, action)
}

// Verify finds changes that were made with every guard disabled.
func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	const toArchive = ledgertest.ToArchive
	tests := []struct{ name, sql, want string }{
		{"Nothing", `SELECT 1`, ""},
		{"NothingWithAnArchive", toArchive + ` WHERE status <> 'queued'; DELETE FROM jobs; DELETE FROM rejections`, ""},
		{"ArchivedAmount", toArchive + ` WHERE seq = 2; DELETE FROM jobs USING archived_jobs a WHERE jobs.id = a.id; UPDATE archived_jobs SET amount = amount + 1`, "say different things"},
		{"Balance", `UPDATE accounts SET balance = balance + 1`, "its history makes"},
		{"LastSeq", `UPDATE accounts SET last_seq = last_seq + 1`, "its history ends at"},
		{"LastAt", `UPDATE accounts SET last_at = now() + interval '1 hour'`, "its history ends"},
		{"BalanceAfter", `UPDATE transactions SET balance_after = balance_after + 1 WHERE seq = 2`, "says balance_after"},
		{"Amount", `UPDATE transactions SET amount = amount + 1 WHERE seq = 2`, "say different things"},
		{"Gap", `UPDATE transactions SET seq = 9 WHERE seq = 3`, "stands where 3 should"},
		{"Time", `UPDATE transactions SET created_at = created_at - interval '1 day' WHERE seq = 2`, "not after the one before"},
		{"MissingTransaction", `DELETE FROM transactions WHERE seq = 3`, "is not queued, and has no transaction, rejection or failure"},
		{"MissingTransactionOfAnArchivedJob", toArchive + ` WHERE seq = 3; DELETE FROM jobs USING archived_jobs a WHERE jobs.id = a.id; DELETE FROM transactions WHERE seq = 3`, "is archived as succeeded, and has no transaction"},
		{"MissingRejection", `DELETE FROM rejections`, "is not queued, and has no transaction, rejection or failure"},
		{"RejectionOfAnArchivedJob", toArchive + ` WHERE seq = 2; DELETE FROM jobs USING archived_jobs a WHERE jobs.id = a.id;
			INSERT INTO rejections SELECT account_id, position, id, now(), 'x' FROM archived_jobs`, "is archived as succeeded, and rejected"},
		{"RejectionOfAnArchivedRejectedJob", toArchive + ` WHERE status = 'rejected'; DELETE FROM jobs USING archived_jobs a WHERE jobs.id = a.id`, "its rejection is still there"},
		{"QueuedThoughItSucceeded", `INSERT INTO queue SELECT account_id, position, job_id FROM transactions WHERE seq = 2`, "is queued and succeeded"},
		{"FailedThoughItIsRejected", `INSERT INTO failures SELECT account_id, position, job_id, 5, finished_at, failure FROM rejections`, "is failed and rejected"},
		{"RejectionOfNoJob", `UPDATE rejections SET job_id = gen_random_uuid()`, "is rejected but does not exist"},
		{"AnotherPosition", `UPDATE rejections SET position = position + 100`, "is rejected at a position that is not its own"},
		{"PositionTwice", `UPDATE jobs SET position = (SELECT min(position) FROM jobs)`, "is that of 3 jobs"},
		{"TransactionOfARejectedJob", `UPDATE transactions SET job_id = (SELECT job_id FROM rejections) WHERE seq = 2`, "is rejected and succeeded"},
		{"TransactionOfNoJob", `UPDATE transactions SET job_id = gen_random_uuid() WHERE seq = 2`, "does not exist"},
		{"Description", `UPDATE transactions SET description = 'other' WHERE seq = 2`, "say different things"},
		{"JobInBothTables", `DELETE FROM jobs USING rejections WHERE id = job_id; DELETE FROM rejections; ` + toArchive + ` WHERE seq = 2`, "is archived, and still there"},
		{"KeyOfAnArchivedJob", toArchive + ` WHERE seq = 2; DELETE FROM jobs USING archived_jobs a WHERE jobs.id = a.id;
			UPDATE archived_jobs SET idempotency_key = (SELECT idempotency_key FROM job_states WHERE seq = 3)`, "has the key of an archived one"},
		{"NothingWithActions", actedSQL("freeze", 1) + actedSQL("unfreeze", 2) + `SELECT 1`, ""},
		{"StatusWithoutAnAction", `UPDATE accounts SET status = 'frozen'`, "is frozen, its operators made it open"},
		{"ActionWithoutItsStatus", actedSQL("freeze", 1) + `SELECT 1`, "is open, its operators made it frozen"},
		{"TransactionWhileFrozen", actedSQL("freeze", -1) + actedSQL("unfreeze", 1) + `SELECT 1`, "transaction 3 of the account with id 1 happened while the account was frozen"},
		{"FrozenTwice", actedSQL("freeze", 1) + actedSQL("freeze", 2) + `UPDATE accounts SET status = 'frozen'`, "found it frozen"},
		{"OpenAfterItsClose", actedSQL("close", 1) + actedSQL("unfreeze", 2) + `SELECT 1`, "found it closed"},
		{"RejectedForAStatus", `UPDATE rejections SET failure = 'account_closed'`, "is rejected for a status that its account did not have"},
		{"RejectedForAStatusInTheArchive", toArchive + ` WHERE status = 'rejected'; DELETE FROM jobs USING rejections WHERE id = job_id; DELETE FROM rejections;
			UPDATE archived_jobs SET failure = 'account_frozen'`, "is rejected for a status that its account did not have"},
		{"HistoryOfNoAccount", `INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at) VALUES (-1, 1, 'deposit', 1, 1, now())`, "belongs to no account"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
			ledgertest.Job(t, pool, account, ledger.Deposit, 5)
			ledgertest.Job(t, pool, account, ledger.Withdrawal, 1000)
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Withdrawal, 7))
			ledgertest.Unguarded(t, pool, test.sql)
			var mismatches []string
			found, err := ledger.Verify(t.Context(), pool, func(m string) { mismatches = append(mismatches, m) }, func(ledger.Verification) {})
			if err != nil {
				t.Fatal(err)
			}
			if int(found.Mismatches) != len(mismatches) || found.Accounts != 1 || found.Jobs != 3 {
				t.Errorf("counts %+v, reported %d", found, len(mismatches))
			}
			all := strings.Join(mismatches, "\n")
			if test.want == "" && all != "" || !strings.Contains(all, test.want) {
				t.Errorf("found %q, want %q", all, test.want)
			}
		})
	}
}
