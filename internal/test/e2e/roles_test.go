package e2e_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// newServedSystem is a system as deploy/postgres/roles.sql sets it up: passbook_owner has
// migrated, all processes log in as passbook_serving, and operators as passbook_operator. admin is the superuser's.
func newServedSystem(t testing.TB, apis, workers int) (s *system, admin *pgxpool.Pool) {
	t.Helper()
	s, admin = servedBy(t, testenv.EmptyPostgresServer(t))
	s.start(apis, workers)
	return s, admin
}

// servedBy is the system on an empty server, before its processes start.
func servedBy(t testing.TB, server *local.Postgres) (s *system, admin *pgxpool.Pool) {
	t.Helper()
	admin, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	grantRoles(t, admin)
	ledgertest.Exec(t, admin, `ALTER ROLE passbook_owner LOGIN PASSWORD 'owner'; ALTER ROLE passbook_serving LOGIN PASSWORD 'serving';
		ALTER ROLE passbook_operator LOGIN PASSWORD 'operator'`)
	migrate := begin(t, "api", []string{"DATABASE_URL=" + testenv.As(t, server.URL(), "passbook_owner", "owner")}, "migrate")
	if err := migrate.wait(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, migrate.log())
	}
	grantRoles(t, admin)
	return &system{
		t: t, postgres: server, redis: testenv.RedisServer(t),
		databaseURL: testenv.As(t, server.URL(), "passbook_serving", "serving"), operatorURL: testenv.As(t, server.URL(), "passbook_operator", "operator"),
	}, admin
}

// grantRoles runs roles.sql as the superuser.
func grantRoles(t testing.TB, admin *pgxpool.Pool) {
	t.Helper()
	roles, err := os.ReadFile(filepath.Join(repository, "deploy", "postgres", "roles.sql"))
	if err != nil {
		t.Fatal(err)
	}
	ledgertest.Exec(t, admin, string(roles))
}

// The serving role opens accounts, keeps sessions and reads everything; TestOperating has
// it do the rest. Postgres refuses what no process has to do, so that the role's password
// alone can't damage the ledger.
func TestServingRole(t *testing.T) {
	t.Parallel()
	s, _ := newServedSystem(t, 1, 1)
	c := newSignedUpClient(t, s)
	a := c.open(100)
	for _, req := range []jobRequest{{a.Number, "deposits", 5, "one"}, {a.Number, "withdrawals", 1000, "too-much"}, {a.Number, "withdrawals", 7, "two"}} {
		if _, err := c.settle(0, req); err != nil {
			t.Fatal(err)
		}
	}
	s.drained()
	if n := len(c.history(a.Number)); n != 3 {
		t.Errorf("the history has %d transactions, want 3", n)
	}
	if n := len(c.jobs(a.Number)); n != 3 {
		t.Errorf("the account has %d jobs, want 3", n)
	}
	checkExport(t, c, a.Number)
	checkSessions(t, c)
	if _, err := auth.NewPruner(s.pool).Prune(t.Context()); err != nil {
		t.Errorf("prune: %v", err)
	}

	s.workers[0].stop() // so that there is a queued job
	if _, err := c.settle(0, jobRequest{a.Number, "deposits", 9, "queued"}); err != nil {
		t.Fatal(err)
	}
	for _, sql := range append(slices.Clone(forbidden),
		`INSERT INTO operator_actions (account_id, action, person, reason) SELECT id, 'unfreeze', 'ann', 'x' FROM accounts`,
		`SELECT archive_jobs(array_agg(id)) FROM jobs`,
	) {
		refuseAsServing(t, s, sql)
	}
	s.verify()
	s.crashWorker(0)
	s.drained()
	if got := c.account(a.Number); got.Balance != 107 || got.LastSeq != 4 {
		t.Errorf("the account is %+v", got)
	}
	s.verify()
}

// forbidden are statements that the serving role has no business with.
var forbidden = []string{
	// a balance without its history, and history without its balance
	`UPDATE accounts SET balance = balance + 1, last_seq = last_seq + 1, last_at = now()`,
	`UPDATE accounts SET balance = balance + 1`,
	`UPDATE accounts SET last_seq = last_seq + 1`,
	`UPDATE accounts SET last_at = now()`,
	`UPDATE accounts SET created_at = now()`,
	`INSERT INTO accounts (user_id, number, currency, balance, last_at, created_at) SELECT user_id, 'rich', currency, 5, now(), now() FROM accounts`,
	`INSERT INTO transactions (account_id, seq, type, amount, balance_after, job_id, position, created_at)
		SELECT account_id, 4, type, amount, 107, id, position, now() FROM job_states WHERE status = 'queued'`,
	`SELECT deposit_initial(id, 5) FROM accounts`,
	`SELECT deposit_initial(0, 5)`,
	// history, jobs and keys that change or go
	`UPDATE transactions SET amount = amount`, `DELETE FROM transactions`, `TRUNCATE transactions`,
	`UPDATE archived_jobs SET amount = amount`, `DELETE FROM archived_jobs`, `TRUNCATE archived_jobs`,
	`DELETE FROM jobs`, `TRUNCATE jobs`, `DELETE FROM accounts`, `TRUNCATE accounts`, `DELETE FROM users`, `TRUNCATE users, sessions, refresh_tokens`,
	`UPDATE jobs SET amount = 1`, `UPDATE jobs SET position = 0`,
	// a job that changes its state by itself
	`DELETE FROM queue`, `TRUNCATE queue`, `UPDATE queue SET position = 0`, `UPDATE queue SET job_id = gen_random_uuid()`, `UPDATE queue SET attempts = -1`,
	`INSERT INTO queue (account_id, position, job_id) SELECT account_id, position, job_id FROM rejections`,
	`INSERT INTO rejections (account_id, position, job_id, finished_at, failure) SELECT account_id, position, job_id, now(), 'x' FROM queue`,
	`UPDATE rejections SET failure = 'x'`, `DELETE FROM rejections`, `TRUNCATE rejections`,
	`INSERT INTO failures (account_id, position, job_id, finished_at, failure) SELECT account_id, position, job_id, now(), 'x' FROM rejections`,
	`INSERT INTO failures (account_id, position, job_id, finished_at, failure)
		SELECT account_id, position, job_id, now(), 'x' FROM transactions WHERE job_id IS NOT NULL`,
	`INSERT INTO failures (account_id, position, job_id, finished_at, failure) SELECT account_id, position, gen_random_uuid(), now(), 'x' FROM queue`,
	`UPDATE failures SET failure = 'x'`, `TRUNCATE failures`,
	// jobs that were never accepted, or that are in two tables
	`INSERT INTO archived_jobs SELECT id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after, type, status,
		idempotency_key, description, failure FROM job_states WHERE status = 'rejected'`,
	`INSERT INTO archived_jobs (id, position, account_id, user_id, amount, type, status, idempotency_key, created_at, finished_at)
		SELECT gen_random_uuid(), 1, account_id, user_id, 5, 'deposit', 'succeeded', 'forged', now(), now() FROM jobs`,
	`SELECT archive_jobs(array_agg(id)) FROM job_states WHERE status = 'queued'`,
	`INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key, position) SELECT gen_random_uuid(), account_id, user_id, type, 5, 'first', 0 FROM jobs`,
	// a user who becomes another
	`UPDATE users SET email_key = 'other@example.com'`, `UPDATE users SET id = gen_random_uuid()`,
	`UPDATE sessions SET user_id = gen_random_uuid()`, `UPDATE sessions SET created_at = now()`,
	// the guards, and what stands before them
	`SET session_replication_role = replica`,
	`ALTER TABLE accounts DISABLE TRIGGER accounts_move`, `ALTER TABLE queue DISABLE TRIGGER queue_rows`, `DROP TRIGGER jobs_enter_queue ON jobs`,
	`CREATE TRIGGER own BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION refuse('own')`,
	`CREATE RULE own AS ON INSERT TO transactions DO INSTEAD NOTHING`,
	`ALTER TABLE jobs ADD COLUMN x int`, `DROP TABLE archived_jobs`, `LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE`,
	`CREATE OR REPLACE FUNCTION check_balance() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`,
	`ALTER FUNCTION apply_job SECURITY INVOKER`, `DROP FUNCTION check_transaction CASCADE`,
	`CREATE TABLE own (x int)`, `CREATE TEMP TABLE jobs (id uuid)`, `CREATE SCHEMA own`, `CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
	// what operators do, and their record
	`UPDATE accounts SET status = 'open'`, `UPDATE accounts SET status = 'frozen'`, `DELETE FROM failures`,
	`INSERT INTO accounts (user_id, number, currency, status, last_at, created_at) SELECT user_id, 'cold', currency, 'frozen', now(), now() FROM accounts`,
	`UPDATE operator_actions SET reason = 'x'`, `DELETE FROM operator_actions`, `TRUNCATE operator_actions`,
	`SELECT setval('job_positions', 1)`, `SELECT setval('accounts_id_seq', 1)`, `ALTER SEQUENCE job_positions RESTART`,
	`UPDATE passbook_schema_version SET is_applied = false`,
	`SET ROLE passbook_owner`,
}

// refuseAsServing runs a statement that must fail for want of a right, or by a rule of the
// bank, and keep nothing.
func refuseAsServing(t *testing.T, s *system, sql string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), sql)
		return err
	})
	const noRight, ruled = "42501", "23" // insufficient_privilege, and the class of integrity constraint violations
	refusal, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || refusal.Code != noRight && !strings.HasPrefix(refusal.Code, ruled) {
		t.Errorf("%s: %v, want a refusal", sql, err)
	}
}

func checkExport(t *testing.T, c *client, number string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.system.api(0)+"/v1/accounts/"+number+"/transactions", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", "text/csv")
	if got := c.do(req); got.err != nil || got.status != http.StatusOK || strings.Count(string(got.body), "\n") != 4 {
		t.Errorf("export: %d %s %v, want a head and 3 transactions", got.status, got.body, got.err)
	}
}

func checkSessions(t *testing.T, c *client) {
	t.Helper()
	type token struct {
		Refresh string `json:"refresh_token"`
	}
	var first, second token
	c.must(http.StatusCreated, http.MethodPost, "/v1/sessions", c.user, &first)
	c.must(http.StatusCreated, http.MethodPost, "/v1/sessions/refresh", first, &second)
	c.must(http.StatusNoContent, http.MethodPost, "/v1/sessions/revoke", second, nil)
	c.must(http.StatusUnauthorized, http.MethodPost, "/v1/sessions/refresh", second, nil)

	const next = "another long password"
	change := map[string]string{"current_password": c.user["password"], "new_password": next}
	c.must(http.StatusNoContent, http.MethodPut, "/v1/users/me/password", change, nil)
	c.must(http.StatusUnauthorized, http.MethodGet, "/v1/users/me", nil, nil)
	c.must(http.StatusUnauthorized, http.MethodPost, "/v1/sessions", c.user, nil)
	c.user["password"] = next
	var made tokens
	c.must(http.StatusCreated, http.MethodPost, "/v1/sessions", c.user, &made)
	c.token = made.AccessToken
}
