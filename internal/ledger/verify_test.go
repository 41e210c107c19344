package ledger_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
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
		{"PositionTwice", `UPDATE jobs SET position = (SELECT min(position) FROM jobs)`, "stands at the position of job"},
		{"PositionOfAnArchivedRejectedJob", toArchive + ` WHERE status = 'rejected'; DELETE FROM jobs USING rejections WHERE id = job_id; DELETE FROM rejections;
			UPDATE archived_jobs SET position = (SELECT max(position) FROM jobs)`, "stands at the position of job"},
		{"TransactionOfARejectedJob", `UPDATE transactions SET job_id = (SELECT job_id FROM rejections) WHERE seq = 2`, "is succeeded at a position that is not its own"},
		{"QueuedOfNoJob", `INSERT INTO queue VALUES (1, 999, gen_random_uuid())`, "is queued but does not exist"},
		{"FailedAtAnotherPosition", `INSERT INTO failures SELECT account_id, 999, job_id, 5, finished_at, failure FROM rejections`, "is failed at a position that is not its own"},
		{"JobOfNoAccount", `UPDATE jobs SET account_id = 9`, "belongs to no account"},
		{"Guard", `DROP TRIGGER jobs_terms ON jobs`, "trigger jobs_terms on jobs is missing"},
		{"SequenceOfPositions", `SELECT setval('job_positions', 1, false)`, "sequence job_positions gives 1 next"},
		{"SequenceOfAccounts", `SELECT setval('accounts_id_seq', 1, false)`, "sequence accounts_id_seq gives 1 next"},
		{"TransactionOfNoJob", `UPDATE transactions SET job_id = gen_random_uuid() WHERE seq = 2`, "does not exist"},
		{"Description", `UPDATE transactions SET description = 'other' WHERE seq = 2`, "say different things"},
		{"JobInBothTables", `DELETE FROM jobs USING rejections WHERE id = job_id; DELETE FROM rejections; ` + toArchive + ` WHERE seq = 2`, "is archived, and still there"},
		{"KeyOfAnArchivedJob", toArchive + ` WHERE seq = 2; DELETE FROM jobs USING archived_jobs a WHERE jobs.id = a.id;
			UPDATE archived_jobs SET idempotency_key = (SELECT idempotency_key FROM job_states WHERE seq = 3)`, "has the key of an archived one"},
		{"NothingWithActions", actedSQL("freeze", 1) + actedSQL("unfreeze", 2) + `SELECT 1`, ""},
		{"StatusWithoutAnAction", `UPDATE accounts SET status = 'frozen'`, "is frozen, its operators made it open"},
		{"ActionWithoutItsStatus", actedSQL("freeze", 1) + `SELECT 1`, "is open, its operators made it frozen"},
		{"TransactionWhileFrozen", actedSQL("freeze", -1) + actedSQL("unfreeze", 1) + `SELECT 1`, "transaction 3 happened while it was frozen"},
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
			for _, limit := range []int{1, 500} { // in the background
				if inSlices := verifyInSlices(t, pool, limit, func(ledger.Round) {}); !slices.Equal(inSlices, mismatches) {
					t.Errorf("%d rows at a time it found %q, want %q", limit, inSlices, mismatches)
				}
			}
		})
	}
}

// verifyInSlices verifies a round as a worker does in the background, on a serving connection. Each
// slice goes on from what was kept of the one before, as after a restart. It calls before each slice.
func verifyInSlices(t *testing.T, pool *pgxpool.Pool, limit int, before func(ledger.Round)) (mismatches []string) {
	t.Helper()
	serving := roundPool(t, pool)
	const most = 10_000 // slices
	var round ledger.Round
	for range most {
		before(round)
		slice, err := round.Verify(t.Context(), serving, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range slice.Mismatches {
			mismatches = append(mismatches, m.String())
		}
		if slice.Done {
			if slice.Ended.Before(round.Begun) || int(round.Verified.Mismatches) != len(mismatches) {
				t.Errorf("the round ended at %v with %+v", slice.Ended, round)
			}
			return mismatches
		}
		kept, err := json.Marshal(round)
		if err != nil {
			t.Fatal(err)
		}
		round = ledger.Round{}
		if err := json.Unmarshal(kept, &round); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("the round has not ended after %d slices: %+v", most, round)
	return nil
}

// roundPool is a worker's pool of the same database.
func roundPool(t *testing.T, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	serving, err := postgres.Open(t.Context(), postgres.Config{URL: pool.Config().ConnString(), MaxConns: 2, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(serving.Close)
	return serving
}

// A round finds nothing wrong while jobs are accepted and applied, and it ends although the account
// grows with each slice. No snapshot lives from one slice to the next.
func TestRoundUnderLoad(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	hot, other := ledgertest.Account(t, pool, user, 10), ledgertest.Account(t, pool, user, 10)
	pay := func() {
		for _, account := range []ledger.Account{hot, other} {
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Withdrawal, 1000)) // is rejected
		}
	}
	for range 5 {
		pay()
	}
	tables, slices := map[string]int{}, 0
	mismatches := verifyInSlices(t, pool, 2, func(round ledger.Round) {
		tables[round.Table]++
		if slices++; slices > 200 {
			t.Fatalf("the round does not end: slices by table %v", tables)
		}
		pay()
		pay() // as many rows of an account as a slice reads
		var snapshots int
		const sql = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND backend_type = 'client backend' AND xact_start IS NOT NULL`
		if err := pool.QueryRow(t.Context(), sql).Scan(&snapshots); err != nil || snapshots > 0 {
			t.Errorf("%d transactions are open between two slices (%v)", snapshots, err)
		}
	})
	if len(mismatches) > 0 {
		t.Errorf("found %q", mismatches)
	}
	if len(tables) != 10 { // nine parts, and what comes before
		t.Errorf("slices by table: %v", tables)
	}
	ledgertest.Check(t, pool)
}

// Applies in flight are no mismatch.
func TestRoundBesideApplies(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	const accounts, each = 4, 40
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var applying errgroup.Group
	for range accounts {
		account := ledgertest.Account(t, pool, user, 5)
		applying.Go(func() error {
			for range each {
				apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 1))
				apply(t, pool, ledgertest.Job(t, pool, account, ledger.Withdrawal, 3))
			}
			return nil
		})
	}
	applied := make(chan error, 1)
	go func() { applied <- applying.Wait(); cancel() }()
	for rounds := 0; ctx.Err() == nil || rounds == 0; rounds++ {
		if mismatches := verifyInSlices(t, pool, 7, func(ledger.Round) {}); len(mismatches) > 0 {
			t.Errorf("found %q", mismatches)
		}
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	ledgertest.Check(t, pool)
}

// Verify verifies all rows of an account also where the sequence of positions is behind them, as after
// a partial restore.
func TestVerifyBehindASequence(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.Account(t, pool, ledgertest.User(t, pool), 1)
	const slice = ledger.VerifyRows
	ledgertest.Unguarded(t, pool, fmt.Sprintf(`SELECT setval('job_positions', 1);
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at, job_id, position)
		SELECT 1, n, 'deposit', 1, CASE n WHEN %[1]d + 1 THEN 7 ELSE n END, now() + n * interval '1 second', gen_random_uuid(), n
		FROM generate_series(2, %[1]d + 1) n`, slice))
	last, reported := "", false
	found, err := ledger.Verify(t.Context(), pool, func(m string) {
		last, reported = m, reported || strings.Contains(m, "says balance_after 7")
	}, func(ledger.Verification) {})
	if err != nil || found.Transactions != slice+1 || !reported {
		t.Errorf("found %+v, %v, the last is %q", found, err, last)
	}
}

// A round that goes on after a restore of an earlier state finds nothing in what is no longer there.
func TestRoundAfterARestore(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 5))
	for range 3 {
		ledgertest.Job(t, pool, account, ledger.Deposit, 5)
	}
	restored := false
	mismatches := verifyInSlices(t, pool, 1, func(round ledger.Round) {
		if round.Table == "queue" && !restored {
			restored = true
			ledgertest.Unguarded(t, pool, `DELETE FROM queue; DELETE FROM jobs USING (SELECT min(position) AS first FROM jobs) kept WHERE position > first;
				SELECT setval('job_positions', (SELECT max(position) FROM jobs))`)
		}
	})
	if !restored || len(mismatches) > 0 {
		t.Errorf("found %q", mismatches)
	}
}

// A round that was kept by another build, with other keys, begins again; one whose key can't be read
// goes on with the next table.
func TestRoundOfAnotherBuild(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	for name, kept := range map[string]ledger.Round{
		"OtherTable": {Table: "gone", After: []string{"1"}},
		"OtherKey":   {Table: "transactions", After: []string{"1"}},
		"OtherType":  {Table: "jobs", After: []string{"1"}, Last: "2"},
	} {
		t.Run(name, func(t *testing.T) {
			const most = 100 // slices
			for n := 0; ; n++ {
				slice, err := kept.Verify(t.Context(), pool, 1)
				if err != nil || n == most {
					t.Fatalf("after %d slices: %v, %+v", n, err, kept)
				}
				if slice.Done {
					break
				}
			}
			if again := name != "OtherType"; again != (kept.Verified.Accounts == 1) || again == (kept.Verified.Mismatches > 0) {
				t.Errorf("account %s: %+v", account.Number, kept.Verified)
			}
		})
	}
}

// A round reports a row that Postgres can't read, and continues with the rows behind it.
func TestRoundPassesWhatCantBeRead(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	for range 3 {
		apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 5))
	}
	ledgertest.Exec(t, pool, `ALTER DOMAIN balance DROP CONSTRAINT balance_check`)
	ledgertest.Unguarded(t, pool, `UPDATE transactions SET balance_after = 9223372036854775807 WHERE seq = 2; UPDATE accounts SET balance = 7`)
	mismatches := strings.Join(verifyInSlices(t, pool, 1, func(ledger.Round) {}), "\n")
	for _, want := range []string{
		"account " + account.Number + ": balance 7, its history makes 115",
		"account with id 1: the next row of transactions after [1 2] can't be verified: ", "bigint out of range",
		"account " + account.Number + ": transaction 2 says balance_after",
	} {
		if !strings.Contains(mismatches, want) {
			t.Errorf("found %s, want %q", mismatches, want)
		}
	}
}

// A table whose file is lost, and with it its highest key, is reported, and does not keep the round
// from the other tables, nor from its end.
func TestRoundPassesALostTable(t *testing.T) {
	t.Parallel()
	for table, want := range map[string][]string{
		"accounts": {"the next row of accounts after", "the sequences can't be verified: ", "trigger jobs_terms on jobs is missing"},
		"jobs":     {"the next row of jobs after", "balance 115, its history makes 99", "trigger jobs_terms on jobs is missing"},
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 15))
			ledgertest.Unguarded(t, pool, `UPDATE transactions SET balance_after = 99 WHERE seq = 2; DROP TRIGGER jobs_terms ON jobs`)
			ledgertest.Exec(t, pool, `UPDATE pg_class SET relfilenode = 1 WHERE oid = '`+table+`'::regclass`)
			mismatches := strings.Join(verifyInSlices(t, pool, 1, func(ledger.Round) {}), "\n")
			for _, want := range want {
				if !strings.Contains(mismatches, want) {
					t.Errorf("found %s, want %q", mismatches, want)
				}
			}
		})
	}
}
