package ledger_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Every trigger of the schema fires in every session, and Verify looks for it: a migration that
// creates or replaces a trigger must enable it always.
func TestGuardsAreKnown(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	const sql = `SELECT tgrelid::regclass || ' ' || tgname, tgenabled = 'A' FROM pg_trigger WHERE NOT tgisinternal`
	var known, found []string
	for table, triggers := range ledger.Guards {
		for _, trigger := range triggers {
			known = append(known, table+" "+trigger)
		}
	}
	rows, _ := pool.Query(t.Context(), sql) // ForEachRow returns its error
	var trigger string
	var always bool
	if _, err := pgx.ForEachRow(rows, []any{&trigger, &always}, func() error {
		if !always {
			t.Errorf("%s does not always fire", trigger)
		}
		found = append(found, trigger)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(known)
	if slices.Sort(found); !slices.Equal(known, found) {
		t.Errorf("the schema has %q\nVerify looks for %q", found, known)
	}
}

// isRefused reports whether a rule or a right of the schema has refused a statement. Any other error is a
// fault of the statement itself, such as a missing column, and hides what the schema lets through.
func isRefused(err error) bool {
	const noRight, brokenRules, notNull = "42501", "23", "23502"
	refusal, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (refusal.Code == noRight || strings.HasPrefix(refusal.Code, brokenRules) && refusal.Code != notNull)
}

// Every function of the schema fixes its search_path, except functions that name the schema of
// each table and operator.
func TestFunctionsFixTheirSearchPath(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	const sql = `SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
		AND NOT coalesce(array_to_string(proconfig, ' '), '') LIKE '%search_path=pg_catalog%' ORDER BY proname`
	rows, _ := pool.Query(t.Context(), sql) // CollectRows returns its error
	loose, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"check_balance", "check_job", "check_queue", "check_transaction", "take_transaction_id"}; !slices.Equal(loose, want) { // migrations/00001_schema.sql says why
		t.Errorf("%q have no search_path of their own, want %q", loose, want)
	}
}

// Verify names a guard that is off, missing, or asleep in a session that replicates.
func TestVerifyFindsGuards(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	for _, test := range []struct{ sql, want string }{
		{`ALTER TABLE queue DISABLE TRIGGER queue_rows`, "trigger queue_rows on queue does not always fire"},
		{`ALTER TABLE queue ENABLE ALWAYS TRIGGER queue_rows; ALTER TABLE transactions ENABLE TRIGGER USER`, "trigger transactions_append_only on transactions does not always fire"},
		{`ALTER TABLE transactions ENABLE REPLICA TRIGGER transactions_rules`, "trigger transactions_rules on transactions does not always fire"},
		{`DROP TRIGGER accounts_move ON accounts`, "trigger accounts_move on accounts is missing"},
	} {
		ledgertest.Exec(t, pool, test.sql)
		if found := mismatches(t, pool); !strings.Contains(found, test.want) {
			t.Errorf("%s: found %q, want %q", test.sql, found, test.want)
		}
	}
}

func mismatches(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	var all []string
	if _, err := ledger.Verify(t.Context(), pool, func(m string) { all = append(all, m) }, func(ledger.Verification) {}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// No session can avoid the rules by its settings or its temporary tables: neither as a replica,
// nor with own tables and operators that its search_path finds first.
func TestGuardsHoldInEverySession(t *testing.T) {
	t.Parallel()
	toArchive := func(schema string) string {
		return strings.Replace(strings.Replace(ledgertest.ToArchive, "archived_jobs", schema+".archived_jobs", 1), "job_states", "public.job_states", 1) + " WHERE status <> 'queued'; "
	}
	const queued = `.queue SELECT account_id, position, job_id FROM public.transactions WHERE position IS NOT NULL; `
	temporary := `CREATE TEMP TABLE jobs (LIKE public.jobs); CREATE TEMP TABLE archived_jobs (LIKE public.archived_jobs);
		CREATE TEMP TABLE accounts (LIKE public.accounts); CREATE TEMP TABLE transactions (LIKE public.transactions);
		CREATE TEMP TABLE queue (LIKE public.queue INCLUDING DEFAULTS); CREATE TEMP TABLE rejections (LIKE public.rejections);
		INSERT INTO pg_temp` + queued + toArchive("pg_temp")
	for name, session := range map[string]string{
		"Replica":         `SET session_replication_role = replica`,
		"TemporaryTables": temporary,
		"TemporaryFirst":  temporary + `SET search_path = pg_temp, public`,
		"OwnSchema": `CREATE SCHEMA own; CREATE TABLE own.archived_jobs (LIKE public.archived_jobs); CREATE TABLE own.jobs (LIKE public.jobs);
			CREATE TABLE own.queue (LIKE public.queue INCLUDING DEFAULTS); INSERT INTO own` + queued + toArchive("own") + `SET search_path = own, public`,
		"OwnOperator": `CREATE SCHEMA own;
			CREATE FUNCTION own.yes(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
			CREATE OPERATOR own.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = own.yes);
			CREATE FUNCTION own.no(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT false';
			CREATE OPERATOR own.< (LEFTARG = int, RIGHTARG = int, FUNCTION = own.no);
			SET search_path = own, pg_catalog, public`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
			archived := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
			apply(t, pool, archived)
			ledgertest.Exec(t, pool, ledgertest.ToArchive+`; DELETE FROM jobs`)
			apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 2))
			queued := ledgertest.Job(t, pool, account, ledger.Deposit, 3)
			conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context()) //nolint:errcheck // nothing is pending on it
			if _, err := conn.Exec(t.Context(), session); err != nil {
				t.Fatal(err)
			}
			for _, sql := range []string{
				`DELETE FROM public.jobs WHERE id <> '` + queued.String() + `'`,
				`DELETE FROM public.transactions`,
				`UPDATE public.transactions SET amount = 7`,
				`UPDATE public.accounts SET balance = 7`,
				`UPDATE public.jobs SET amount = 7`,
				`DELETE FROM public.queue`,
				`INSERT INTO public.queue (account_id, position, job_id) SELECT account_id, position, job_id FROM public.transactions WHERE position IS NOT NULL`,
				`INSERT INTO public.failures (account_id, position, job_id, finished_at, failure)
					SELECT account_id, position, job_id, now(), 'x' FROM public.transactions WHERE position IS NOT NULL`,
				`INSERT INTO public.transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at)
					SELECT account_id, 99, type, amount, balance_after, job_id, position, now() FROM public.transactions WHERE position IS NOT NULL`,
				`INSERT INTO public.transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at)
					SELECT account_id, 99, 'deposit', 3, 999, gen_random_uuid(), position, now() FROM public.queue`,
				`TRUNCATE public.archived_jobs`,
			} {
				if _, err := conn.Exec(t.Context(), sql); !isRefused(err) {
					t.Errorf("%s: got %v, want it refused", sql, err)
				}
			}
			const repeated = `INSERT INTO public.jobs (id, account_id, user_id, type, amount, idempotency_key)
				SELECT gen_random_uuid(), account_id, user_id, type, amount, idempotency_key FROM public.archived_jobs`
			if tag, err := conn.Exec(t.Context(), repeated); err != nil || tag.RowsAffected() != 0 {
				t.Errorf("a job with an archived key: %s, %v; want no row", tag, err)
			}
			var outcome *string
			if err := conn.QueryRow(t.Context(), `SELECT outcome::text FROM public.apply_job($1, $2, 0)`, queued, ledger.MaxAmount).Scan(&outcome); err != nil || outcome == nil || *outcome != "succeeded" {
				t.Errorf("apply_job: %v, %v", outcome, err)
			}
			ledgertest.Check(t, pool)
		})
	}
}

// A role that does not own the tables can neither change a balance without its history nor the
// history without its balance, whatever it was granted.
func TestRoleWithEveryGrant(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	ledgertest.Exec(t, pool, `CREATE ROLE lavish; GRANT ALL ON ALL TABLES IN SCHEMA public TO lavish; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO lavish`)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	apply(t, pool, ledgertest.Job(t, pool, account, ledger.Deposit, 5))
	ledgertest.Job(t, pool, account, ledger.Deposit, 6)
	const record = `INSERT INTO transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at)
		SELECT account_id, 3, type, amount, 111, id, position, now() FROM job_states WHERE status = 'queued'`
	// An account without a history, which the owner of the tables opens, and its initial deposit.
	const begin = `SET LOCAL ROLE NONE; INSERT INTO accounts (user_id, number, currency, last_at, created_at) SELECT user_id, '1234', 'KRW', now(), now() FROM accounts;
		SET LOCAL ROLE lavish; INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
		SELECT id, 1, 'deposit', 5, 5, now() FROM accounts WHERE number = '1234'`
	const move = `UPDATE accounts SET balance = 111, last_seq = 3, last_at = now()`
	for _, sql := range []string{
		move, record, begin, move + "; " + record, `UPDATE accounts SET created_at = created_at`, `DELETE FROM accounts`,
		`INSERT INTO accounts (user_id, number, currency, balance, last_seq, last_at, created_at) SELECT user_id, '1234', 'KRW', 5, 1, now(), now() FROM accounts`,
		`UPDATE transactions SET amount = 7`, `DELETE FROM transactions`, `TRUNCATE transactions`,
		`DELETE FROM queue`, `UPDATE queue SET position = 0`, `TRUNCATE queue`,
		`INSERT INTO queue SELECT account_id, position, job_id FROM transactions WHERE position IS NOT NULL`,
		`INSERT INTO rejections SELECT account_id, position, job_id, now(), 'x' FROM queue`,
		`INSERT INTO failures SELECT account_id, position, job_id, 0, now(), 'x' FROM transactions WHERE position IS NOT NULL`,
		`UPDATE jobs SET amount = 7`, ledgertest.ToArchive + ` WHERE status = 'succeeded'`,
		`UPDATE accounts SET status = 'frozen'`, `DELETE FROM failures`, `UPDATE operator_actions SET reason = 'x'`, `DELETE FROM operator_actions`,
		`SELECT apply_job(id, 0, 0) FROM jobs`, `SELECT deposit_initial(id, 5) FROM accounts`, `SELECT archive_jobs(array_agg(id)) FROM jobs`,
	} {
		t.Run(sql, func(t *testing.T) {
			if _, err := pool.Exec(t.Context(), `SET LOCAL ROLE lavish; `+sql); !isRefused(err) {
				t.Errorf("got %v, want it refused", err)
			}
		})
	}
	for _, sql := range []string{ // what the roles of serving processes and of operators need
		`SELECT FROM accounts FOR NO KEY UPDATE`,
		`UPDATE queue SET attempts = attempts + 1`,
		`INSERT INTO failures SELECT account_id, position, job_id, 5, now(), 'internal_error' FROM queue`,
		`INSERT INTO operator_actions (account_id, action, job_id, person, reason) SELECT account_id, 'replay', job_id, 'ann', 'x' FROM failures`,
		`INSERT INTO operator_actions (account_id, action, person, reason) SELECT id, 'freeze', 'ann', 'x' FROM accounts`,
	} {
		if tag, err := pool.Exec(t.Context(), `SET LOCAL ROLE lavish; `+sql); err != nil || tag.RowsAffected() != 1 {
			t.Errorf("%s: %s, %v; want one row", sql, tag, err)
		}
	}
	ledgertest.Check(t, pool)
}

// An account has one initial deposit, and it is the first transaction.
func TestInitialDepositOnce(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
	for _, id := range []int64{account.ID, account.ID + 1} {
		if _, err := pool.Exec(t.Context(), `SELECT deposit_initial($1, 5)`, id); err == nil || !strings.Contains(err.Error(), "has a history, or does not exist") {
			t.Errorf("account %d: %v, want a refusal", id, err)
		}
	}
	ledgertest.Check(t, pool)
}
