-- +goose NO TRANSACTION
-- +goose Up

-- What holds the rules of the bank holds them in every session.
--
-- Each statement may be run twice, should a later one fail. Each of the last ones waits for
-- the writers of one table, and gives way after lock_timeout; none holds two tables at once,
-- so that no apply and this migration wait for each other.

-- A balance moves with its history, and a job to the archive, in functions that do it as a
-- whole. They run as their owner, so that a role that serves needs no right to write
-- balances, history or the archive (deploy/postgres/roles.sql), and nobody may call them
-- who was not granted it. Processes of the build before, which serve as the owner, go on.

-- deposit_initial makes the first transaction of an account that has none.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION deposit_initial(account bigint, sum bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    deposited timestamptz;
BEGIN
    UPDATE accounts SET balance = sum, last_seq = 1, last_at = last_at + interval '1 microsecond'
    WHERE id = account AND last_seq = 0
    RETURNING last_at INTO deposited;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'account % has a history, or does not exist', account USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
    VALUES (account, 1, 'deposit', sum, sum, deposited);
END
$$;
-- +goose StatementEnd

-- archive_jobs moves finished jobs from jobs to archived_jobs, and returns how many: another
-- call may have moved some. Its caller holds the locks of their keys (internal/job/archive.go).
-- A queued or failed job among them is an error, and none moves.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION archive_jobs(ids uuid[]) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    moved bigint;
BEGIN
    INSERT INTO archived_jobs (id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after,
        type, status, attempts, idempotency_key, description, failure)
    SELECT id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after,
        type, status, attempts, idempotency_key, description, failure
    FROM jobs WHERE id = ANY (ids);
    DELETE FROM jobs WHERE id = ANY (ids); -- jobs_leave_archived looks whether each stands in the archive
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END
$$;
-- +goose StatementEnd

REVOKE EXECUTE ON FUNCTION apply_job, deposit_initial, archive_jobs FROM PUBLIC;

-- The functions find the tables that stand in the schema of jobs, and the operators of
-- Postgres, whatever search_path and whatever temporary tables the session has: with an
-- empty temporary archived_jobs an archived key made a second job. The path names the
-- schema: DATABASE_URL may choose another one than public.
--
-- The clause costs 2 % of an apply for each function that has it. The three that each apply
-- calls for its rows name no table, and say of which schema their operators are instead.
-- +goose StatementBegin
DO $$
DECLARE
    ours     text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass);
    function regproc;
BEGIN
    FOREACH function IN ARRAY ARRAY['apply_job', 'archive_jobs', 'deposit_initial', 'refuse', 'refuse_unless_archived', 'skip_archived']::regproc[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %s, pg_temp', function, ours);
    END LOOP;
END
$$;
-- +goose StatementEnd

ALTER FUNCTION apply_job SECURITY DEFINER;

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION hold_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (OLD.status OPERATOR(pg_catalog.=) 'queued' OR OLD.status OPERATOR(pg_catalog.=) 'failed' AND NEW.status OPERATOR(pg_catalog.=) 'queued') THEN
        RAISE EXCEPTION '% on %: a finished job never changes', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT (NEW.attempts OPERATOR(pg_catalog.>=) 0 AND CASE
        WHEN NEW.status OPERATOR(pg_catalog.=) 'queued' THEN
            NEW.finished_at IS NULL AND NEW.seq IS NULL AND NEW.balance_after IS NULL AND NEW.failure IS NULL
        WHEN NEW.status OPERATOR(pg_catalog.=) 'succeeded' THEN
            NEW.finished_at IS NOT NULL AND NEW.seq IS NOT NULL AND NEW.balance_after IS NOT NULL AND NEW.failure IS NULL
        ELSE NEW.finished_at IS NOT NULL AND NEW.failure IS NOT NULL AND NEW.seq IS NULL AND NEW.balance_after IS NULL
    END) THEN
        RAISE EXCEPTION '% on %: a job has what belongs to its status, and nothing else', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION hold_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (NEW.last_seq OPERATOR(pg_catalog.=) (OLD.last_seq OPERATOR(pg_catalog.+) 1) AND NEW.last_at OPERATOR(pg_catalog.>) OLD.last_at
         OR NEW.last_seq OPERATOR(pg_catalog.=) OLD.last_seq AND NEW.balance OPERATOR(pg_catalog.=) OLD.balance
            AND NEW.last_at OPERATOR(pg_catalog.=) OLD.last_at) THEN
        RAISE EXCEPTION '% on %: a balance moves only with its history', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION hold_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (NEW.seq OPERATOR(pg_catalog.>=) 1
        AND (NEW.job_id IS NOT NULL OR NEW.seq OPERATOR(pg_catalog.=) 1 AND NEW.type OPERATOR(pg_catalog.=) 'deposit')) THEN
        RAISE EXCEPTION '% on %: a posting has its job, but for an initial deposit', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- What the row says of the balance before it can't be negative either.
    IF NOT (NEW.type OPERATOR(pg_catalog.=) 'withdrawal' OR NEW.balance_after OPERATOR(pg_catalog.>=) NEW.amount) THEN
        RAISE EXCEPTION '% on %: no balance was ever negative', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd

-- A role that is not the owner, whatever it was granted, moves no balance, writes no
-- history, ends no job succeeded and archives none but by those functions. For the owner,
-- and so inside the functions, the policies are not there: an apply does not pay for them.
-- A trigger that looks for the history of each balance, deferred to the commit, cost an
-- apply 17 %. A pg_dump runs as the owner, a superuser or a role that has BYPASSRLS.
--
-- A row is not locked without a policy that lets it be updated; the check refuses the update.
DROP POLICY IF EXISTS accounts_read ON accounts;
CREATE POLICY accounts_read ON accounts FOR SELECT USING (true);
DROP POLICY IF EXISTS accounts_open ON accounts;
CREATE POLICY accounts_open ON accounts FOR INSERT WITH CHECK (true); -- empty: accounts_start_empty
DROP POLICY IF EXISTS accounts_lock ON accounts;
CREATE POLICY accounts_lock ON accounts FOR UPDATE USING (true) WITH CHECK (false);
ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS jobs_read ON jobs;
CREATE POLICY jobs_read ON jobs FOR SELECT USING (true);
DROP POLICY IF EXISTS jobs_accept ON jobs;
CREATE POLICY jobs_accept ON jobs FOR INSERT WITH CHECK (true); -- queued: jobs_start_queued
DROP POLICY IF EXISTS jobs_fail ON jobs;
CREATE POLICY jobs_fail ON jobs FOR UPDATE USING (true) WITH CHECK (status <> 'succeeded');
ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS archived_jobs_read ON archived_jobs;
CREATE POLICY archived_jobs_read ON archived_jobs FOR SELECT USING (true);
ALTER TABLE archived_jobs ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS transactions_read ON transactions;
CREATE POLICY transactions_read ON transactions FOR SELECT USING (true);
ALTER TABLE transactions ENABLE ROW LEVEL SECURITY;

-- session_replication_role = replica does not switch a trigger off that is ENABLE ALWAYS:
-- archived keys made second jobs. A database that receives these tables by logical
-- replication disables the triggers until it serves; `worker verify` names those that are
-- not as they stand here (internal/ledger/guards.go). A migration that replaces a trigger
-- enables it again.
ALTER TABLE users ENABLE ALWAYS TRIGGER users_email_key;
ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_are_kept, ENABLE ALWAYS TRIGGER accounts_form, ENABLE ALWAYS TRIGGER accounts_move,
    ENABLE ALWAYS TRIGGER accounts_start_empty, ENABLE ALWAYS TRIGGER accounts_terms;
ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_are_kept, ENABLE ALWAYS TRIGGER jobs_form, ENABLE ALWAYS TRIGGER jobs_leave_archived,
    ENABLE ALWAYS TRIGGER jobs_skip_archived, ENABLE ALWAYS TRIGGER jobs_start_queued, ENABLE ALWAYS TRIGGER jobs_states,
    ENABLE ALWAYS TRIGGER jobs_terms;
ALTER TABLE archived_jobs ENABLE ALWAYS TRIGGER archived_jobs_append_only;
ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_append_only, ENABLE ALWAYS TRIGGER transactions_rules;

-- +goose Down
ALTER TABLE transactions DISABLE ROW LEVEL SECURITY;
ALTER TABLE archived_jobs DISABLE ROW LEVEL SECURITY;
ALTER TABLE jobs DISABLE ROW LEVEL SECURITY;
ALTER TABLE accounts DISABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS transactions_read ON transactions;
DROP POLICY IF EXISTS archived_jobs_read ON archived_jobs;
DROP POLICY IF EXISTS jobs_fail ON jobs;
DROP POLICY IF EXISTS jobs_accept ON jobs;
DROP POLICY IF EXISTS jobs_read ON jobs;
DROP POLICY IF EXISTS accounts_lock ON accounts;
DROP POLICY IF EXISTS accounts_open ON accounts;
DROP POLICY IF EXISTS accounts_read ON accounts;
ALTER TABLE transactions ENABLE TRIGGER transactions_append_only, ENABLE TRIGGER transactions_rules;
ALTER TABLE archived_jobs ENABLE TRIGGER archived_jobs_append_only;
ALTER TABLE jobs ENABLE TRIGGER jobs_are_kept, ENABLE TRIGGER jobs_form, ENABLE TRIGGER jobs_leave_archived,
    ENABLE TRIGGER jobs_skip_archived, ENABLE TRIGGER jobs_start_queued, ENABLE TRIGGER jobs_states, ENABLE TRIGGER jobs_terms;
ALTER TABLE accounts ENABLE TRIGGER accounts_are_kept, ENABLE TRIGGER accounts_form, ENABLE TRIGGER accounts_move,
    ENABLE TRIGGER accounts_start_empty, ENABLE TRIGGER accounts_terms;
ALTER TABLE users ENABLE TRIGGER users_email_key;
DROP FUNCTION IF EXISTS deposit_initial;
DROP FUNCTION IF EXISTS archive_jobs;
GRANT EXECUTE ON FUNCTION apply_job TO PUBLIC;
ALTER FUNCTION apply_job SECURITY INVOKER RESET search_path;
ALTER FUNCTION refuse RESET search_path;
ALTER FUNCTION refuse_unless_archived RESET search_path;
ALTER FUNCTION skip_archived RESET search_path;
