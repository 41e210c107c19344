package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Verification counts what Verify has read.
type Verification struct {
	Accounts     int64
	Transactions int64
	Jobs         int64
	Mismatches   int64
}

// progressEvery is how many rows pass between two calls of progress.
const progressEvery = 100_000

// Verify recomputes every account from its history and compares the jobs with it, in one
// consistent snapshot. It also checks the sequences and the guards, and compares the statuses of the
// accounts with the operators' actions. It streams the rows, so its memory is bounded. It calls
// report for each mismatch, and progress every progressEvery rows.
func Verify(ctx context.Context, pool *pgxpool.Pool, report func(mismatch string), progress func(Verification)) (Verification, error) {
	var v Verification
	seen := func(rows *int64) {
		if *rows++; *rows%progressEvery == 0 {
			progress(v)
		}
	}
	mismatch := func(format string, args ...any) {
		v.Mismatches++
		report(fmt.Sprintf(format, args...))
	}
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, pool, snapshot, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
			return err
		}
		if err := verifyHistory(ctx, tx, &v, seen, mismatch); err != nil {
			return err
		}
		if err := verifyStatuses(ctx, tx, mismatch); err != nil {
			return err
		}
		if err := verifySequences(ctx, tx, mismatch); err != nil {
			return err
		}
		if err := verifyGuards(ctx, tx, mismatch); err != nil {
			return err
		}
		return verifyJobs(ctx, tx, &v, mismatch)
	})
	if err != nil {
		return v, fmt.Errorf("verify: %w", err)
	}
	return v, nil
}

// historySQL reads both primary keys side by side: Postgres need not sort.
const historySQL = `
	SELECT account.id, account.number, account.balance, account.last_seq, account.last_at,
		transaction.seq, transaction.type, transaction.amount, transaction.balance_after, transaction.created_at
	FROM accounts account LEFT JOIN transactions transaction ON transaction.account_id = account.id
	ORDER BY account.id, transaction.seq`

// historyRow is an account and one transaction of its history; the transaction's fields are
// nil for an account without a transaction.
type historyRow struct {
	AccountID    int64
	Number       string
	Balance      int64
	LastSeq      int64
	LastAt       time.Time
	Seq          *int64
	Type         *EntryType
	Amount       *int64
	BalanceAfter *int64
	CreatedAt    *time.Time
}

func verifyHistory(ctx context.Context, tx pgx.Tx, v *Verification, seen func(*int64), mismatch func(string, ...any)) error {
	rows, err := tx.Query(ctx, historySQL)
	if err != nil {
		return err
	}
	defer rows.Close()
	var account recomputed
	for rows.Next() {
		row, err := pgx.RowToStructByPos[historyRow](rows)
		if err != nil {
			return err
		}
		if row.AccountID != account.row.AccountID {
			account.end(mismatch)
			account = recomputed{row: row}
			seen(&v.Accounts)
		}
		if row.Seq != nil {
			account.add(row, mismatch)
			seen(&v.Transactions)
		}
	}
	account.end(mismatch)
	return rows.Err()
}

// recomputed is one account, as its history makes it.
type recomputed struct {
	row     historyRow // the account's part of it
	seq     int64
	balance int64
	at      time.Time
}

func (r *recomputed) add(transaction historyRow, mismatch func(string, ...any)) {
	r.seq++
	if *transaction.Seq != r.seq {
		mismatch("account %s: transaction %d stands where %d should", r.row.Number, *transaction.Seq, r.seq)
		r.seq = *transaction.Seq
	}
	if *transaction.Type == Deposit {
		r.balance += *transaction.Amount
	} else {
		r.balance -= *transaction.Amount
	}
	if *transaction.BalanceAfter != r.balance {
		mismatch("account %s: transaction %d says balance_after %d, its history makes %d", r.row.Number, r.seq, *transaction.BalanceAfter, r.balance)
		r.balance = *transaction.BalanceAfter
	}
	if !transaction.CreatedAt.After(r.at) {
		mismatch("account %s: transaction %d is dated %v, not after the one before it", r.row.Number, r.seq, *transaction.CreatedAt)
	}
	r.at = *transaction.CreatedAt
}

func (r *recomputed) end(mismatch func(string, ...any)) {
	if r.row.AccountID == 0 { // before the first
		return
	}
	if r.row.Balance != r.balance {
		mismatch("account %s: balance %d, its history makes %d", r.row.Number, r.row.Balance, r.balance)
	}
	if r.row.LastSeq != r.seq {
		mismatch("account %s: last_seq %d, its history ends at %d", r.row.Number, r.row.LastSeq, r.seq)
	}
	if r.seq > 0 && !r.row.LastAt.Equal(r.at) {
		mismatch("account %s: last_at %v, its history ends %v", r.row.Number, r.row.LastAt, r.at)
	}
}

// jobsSQL pairs all jobs, archived or not, with the rows that state their outcomes, and returns
// the pairs that do not agree. A job must have exactly one state and a position of its own, and its
// transaction the same amount. An archived job must have no rejection: the archive states it. A
// job and its key must be in jobs or in the archive, not in both.
const jobsSQL = `
	WITH states AS NOT MATERIALIZED (
		SELECT job_id, account_id, position, 'queued' AS status, NULL::entry_type AS type, NULL::bigint AS amount, NULL AS description,
			NULL::bigint AS seq, NULL::bigint AS balance_after, NULL::timestamptz AS at FROM queue UNION ALL
		SELECT job_id, account_id, position, 'succeeded', type, amount, description,
			seq, balance_after, created_at FROM transactions WHERE job_id IS NOT NULL UNION ALL
		SELECT job_id, account_id, position, 'rejected', NULL, NULL, NULL, NULL, NULL, NULL FROM rejections UNION ALL
		SELECT job_id, account_id, position, 'failed', NULL, NULL, NULL, NULL, NULL, NULL FROM failures
	), all_jobs AS NOT MATERIALIZED (
		SELECT id, account_id, position, type, amount, description,
			NULL::text AS archived, NULL::bigint AS seq, NULL::bigint AS balance_after, NULL::timestamptz AS at FROM jobs UNION ALL
		SELECT id, account_id, position, type, amount, description, status::text, seq, balance_after, finished_at FROM archived_jobs
	)
	SELECT subject, fault FROM (
		SELECT 'job ' || coalesce(job.id, state.job_id) AS subject,
			CASE
				WHEN job.id IS NULL THEN 'is ' || state.status || ' but does not exist'
				WHEN job.archived <> coalesce(state.status, 'rejected') THEN 'is archived as ' || job.archived || ', and ' || coalesce(state.status, 'has no transaction')
				WHEN job.archived = 'rejected' AND state.job_id IS NOT NULL THEN 'is archived as rejected, and its rejection is still there'
				WHEN job.archived IS NULL AND state.job_id IS NULL THEN 'is not queued, and has no transaction, rejection or failure'
				WHEN (job.account_id, job.position) <> (state.account_id, state.position) THEN 'is ' || state.status || ' at a position that is not its own'
				WHEN state.status = 'succeeded' AND (
					(job.type, job.amount, job.description) IS DISTINCT FROM (state.type, state.amount, state.description) OR
					job.archived IS NOT NULL AND (job.seq, job.balance_after, job.at) IS DISTINCT FROM (state.seq, state.balance_after, state.at))
					THEN 'and its transaction say different things'
				WHEN NOT EXISTS (SELECT FROM accounts WHERE accounts.id = job.account_id) THEN 'belongs to no account'
			END AS fault
		FROM all_jobs job FULL JOIN states state ON state.job_id = job.id
		UNION ALL
		SELECT 'job ' || job_id, 'is ' || string_agg(status, ' and ' ORDER BY status) FROM states GROUP BY job_id HAVING count(*) > 1
		UNION ALL
		SELECT 'transaction ' || seq || ' of the account with id ' || account_id, 'belongs to no account'
		FROM transactions WHERE NOT EXISTS (SELECT FROM accounts WHERE accounts.id = account_id)
		UNION ALL
		SELECT 'job ' || id, 'is archived, and still there' FROM jobs JOIN archived_jobs USING (id)
		UNION ALL
		SELECT 'job ' || jobs.id, 'has the key of an archived one' FROM jobs JOIN archived_jobs USING (user_id, idempotency_key)
		UNION ALL
		SELECT 'position ' || position || ' of the account with id ' || account_id, 'is that of ' || count(*) || ' jobs'
		FROM all_jobs GROUP BY account_id, position HAVING count(*) > 1
	) pairs
	WHERE fault IS NOT NULL`

func verifyJobs(ctx context.Context, tx pgx.Tx, v *Verification, mismatch func(string, ...any)) error {
	if err := tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM archived_jobs)`).Scan(&v.Jobs); err != nil {
		return err
	}
	return reportFaults(ctx, tx, jobsSQL, mismatch)
}

// statusesSQL recomputes the status of each account from the operators' actions, and returns what
// does not agree: a status, an action that its account's status did not allow, a transaction while
// the account was not open, and a rejection for a status that the account did not have before.
const statusesSQL = `
	WITH steps AS (
		SELECT account_id, at, action, becomes,
			coalesce(lag(becomes) OVER steps, 'open') AS was, coalesce(lead(at) OVER steps, 'infinity') AS until
		FROM (
			SELECT account_id, at, action,
				CASE action WHEN 'freeze' THEN 'frozen' WHEN 'close' THEN 'closed' ELSE 'open' END::account_status AS becomes
			FROM operator_actions WHERE action <> 'replay'
		) actions
		WINDOW steps AS (PARTITION BY account_id ORDER BY at)
	), rejected AS NOT MATERIALIZED (
		SELECT job_id, account_id, finished_at, failure FROM rejections WHERE failure IN ('account_frozen', 'account_closed') UNION ALL
		SELECT id, account_id, finished_at, failure FROM archived_jobs WHERE failure IN ('account_frozen', 'account_closed')
	)
	SELECT 'account ' || number, 'is ' || status || ', its operators made it ' || coalesce(becomes, 'open')
	FROM accounts LEFT JOIN steps ON account_id = id AND until = 'infinity'
	WHERE status <> coalesce(becomes, 'open')
	UNION ALL
	SELECT 'action ' || action || ' of ' || at || ' on the account with id ' || account_id, 'found it ' || was
	FROM steps WHERE was IN (becomes, 'closed')
	UNION ALL
	SELECT 'transaction ' || seq || ' of the account with id ' || account_id, 'happened while the account was ' || becomes
	FROM steps JOIN transactions transaction USING (account_id)
	WHERE becomes <> 'open' AND transaction.created_at > at AND transaction.created_at < until
	UNION ALL
	SELECT 'job ' || job_id, 'is rejected for a status that its account did not have'
	FROM rejected WHERE NOT EXISTS (
		SELECT FROM steps WHERE steps.account_id = rejected.account_id AND at < finished_at AND 'account_' || becomes = failure)`

func verifyStatuses(ctx context.Context, tx pgx.Tx, mismatch func(string, ...any)) error {
	return reportFaults(ctx, tx, statusesSQL, mismatch)
}

// reportFaults reports each row of a statement, a subject and its fault.
func reportFaults(ctx context.Context, tx pgx.Tx, sql string, mismatch func(string, ...any)) error {
	rows, err := tx.Query(ctx, sql)
	if err != nil {
		return err
	}
	var subject, fault string
	_, err = pgx.ForEachRow(rows, []any{&subject, &fault}, func() error {
		mismatch("%s %s", subject, fault)
		return nil
	})
	return err
}
