package ledger_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/testenv"
)

// Every trigger of the schema fires in every session, and Verify knows it: a migration
// that makes or replaces one enables it always.
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

// Every function of the schema that names a table, or that a session may call with an
// operator of its own, has its search_path fixed.
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
	if want := []string{"hold_balance", "hold_transaction"}; !slices.Equal(loose, want) { // migrations/00014_guards.sql says why
		t.Errorf("%q have no search_path of their own, want %q", loose, want)
	}
}

// Verify names a guard that is off, missing, or asleep in a session that replicates.
func TestVerifyFindsGuards(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	for _, test := range []struct{ sql, want string }{
		{`ALTER TABLE jobs DISABLE TRIGGER jobs_states`, "trigger jobs_states on jobs does not always fire"},
		{`ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_states; ALTER TABLE transactions ENABLE TRIGGER USER`, "trigger transactions_append_only on transactions does not always fire"},
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

// No session goes past the rules by its settings or by its temporary tables: not where it
// says that it replicates, and not where its own tables and operators come first.
func TestGuardsHoldInEverySession(t *testing.T) {
	t.Parallel()
	const temporary = `CREATE TEMP TABLE jobs (LIKE public.jobs); CREATE TEMP TABLE archived_jobs (LIKE public.jobs);
		CREATE TEMP TABLE accounts (LIKE public.accounts); CREATE TEMP TABLE transactions (LIKE public.transactions);
		INSERT INTO pg_temp.archived_jobs SELECT * FROM public.jobs; `
	for name, session := range map[string]string{
		"Replica":         `SET session_replication_role = replica`,
		"TemporaryTables": temporary,
		"TemporaryFirst":  temporary + `SET search_path = pg_temp, public`,
		"OwnSchema": `CREATE SCHEMA own; CREATE TABLE own.archived_jobs (LIKE public.jobs); CREATE TABLE own.jobs (LIKE public.jobs);
			INSERT INTO own.archived_jobs SELECT * FROM public.jobs; SET search_path = own, public`,
		"OwnOperator": `CREATE SCHEMA own;
			CREATE FUNCTION own.yes(public.job_status, public.job_status) RETURNS boolean LANGUAGE sql AS 'SELECT true';
			CREATE OPERATOR own.= (LEFTARG = public.job_status, RIGHTARG = public.job_status, FUNCTION = own.yes);
			SET search_path = own, pg_catalog, public`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account := ledgertest.Account(t, pool, ledgertest.User(t, pool), 100)
			archived := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
			apply(t, pool, archived)
			ledgertest.Exec(t, pool, `INSERT INTO archived_jobs SELECT * FROM jobs; DELETE FROM jobs`)
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
				`UPDATE public.jobs SET status = 'queued', seq = NULL, balance_after = NULL, finished_at = NULL WHERE seq IS NOT NULL`,
				`TRUNCATE public.archived_jobs`,
			} {
				if tag, err := conn.Exec(t.Context(), sql); err == nil {
					t.Errorf("%s: %s", sql, tag)
				}
			}
			const again = `INSERT INTO public.jobs (id, account_id, user_id, type, amount, idempotency_key)
				SELECT gen_random_uuid(), account_id, user_id, type, amount, idempotency_key FROM public.archived_jobs`
			if tag, err := conn.Exec(t.Context(), again); err != nil || tag.RowsAffected() != 0 {
				t.Errorf("an archived key once more: %s, %v", tag, err)
			}
			var outcome *string
			if err := conn.QueryRow(t.Context(), `SELECT outcome::text FROM public.apply_job($1, $2, 0)`, queued, ledger.MaxAmount).Scan(&outcome); err != nil || outcome == nil || *outcome != "succeeded" {
				t.Errorf("apply_job: %v, %v", outcome, err)
			}
			ledgertest.Check(t, pool)
		})
	}
}
