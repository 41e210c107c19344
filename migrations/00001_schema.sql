-- +goose Up

-- The tables, and the rules of the bank, which hold for every role and in every session.
--
-- Rules that an apply would pay for stand in triggers and not in CHECK constraints. Postgres
-- reads the tree of each check, and of each trigger's condition, anew for every statement
-- that changes a row: all of them together, about a third of what an apply costs. It reads the
-- body of a function once a connection, and a trigger BEFORE UPDATE OF some columns only
-- where a statement sets one of them.
--
-- Triggers are ENABLE ALWAYS: session_replication_role = replica switches off the others. A
-- database that receives these tables by logical replication disables them until it
-- serves; `worker verify` names those that are not as they stand here
-- (internal/ledger/guards.go). A migration that replaces a trigger enables it again.
--
-- Row level security binds every role but the owner of the tables. Whatever such a role was
-- granted, it moves no balance, writes no history, ends no job as succeeded and archives
-- none but by the functions apply_job, deposit_initial and archive_jobs, which run as their
-- owner. The policies cost the owner nothing, and so an apply neither. (A trigger that looks
-- for the history of each balance, deferred to the commit, cost an apply 17 %.) A pg_dump
-- runs as the owner, a superuser or a role that has BYPASSRLS.

-- +goose StatementBegin
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END
$$;
-- +goose StatementEnd

-- Which installation this database is. Processes keep the id in Redis, too, so that two
-- installations that use the same queues are noticed. A copy of the database has the
-- same id, until `UPDATE installation SET id = gen_random_uuid()`.
CREATE TABLE installation (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    id      uuid    NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO installation DEFAULT VALUES;

-- Who may log in. Emails compare by email_key, which the API makes (internal/auth/users.go):
-- Unicode's simple case folding, whatever the database's locale; SQL knows no such folding.
CREATE TABLE users (
    id            uuid        PRIMARY KEY,
    email         text        NOT NULL,
    email_key     text        NOT NULL COLLATE "C",
    password_hash text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (email_key);

CREATE TABLE sessions (
    id         uuid        PRIMARY KEY,
    user_id    uuid        NOT NULL REFERENCES users,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
CREATE INDEX sessions_user ON sessions (user_id);
-- To find a user's oldest live session.
CREATE INDEX sessions_live ON sessions (user_id, created_at) WHERE revoked_at IS NULL;

-- A refresh token knows the one that it was given for, and a spent one whether it may be
-- used once more for a short while.
CREATE TABLE refresh_tokens (
    hash       bytea       PRIMARY KEY,
    parent     bytea,
    session_id uuid        NOT NULL REFERENCES sessions,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    spent_at   timestamptz,
    closed     boolean     NOT NULL DEFAULT false
);
-- To delete a session with its tokens.
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id, expires_at);

-- Amounts are minor units of the account's currency; the largest one, 2^53-1, is what a
-- JSON number holds exactly.
CREATE DOMAIN amount  AS bigint CHECK (VALUE BETWEEN 1 AND 9007199254740991);
CREATE DOMAIN balance AS bigint CHECK (VALUE BETWEEN 0 AND 9007199254740991);
CREATE TYPE entry_type AS ENUM ('deposit', 'withdrawal');

-- The balance is the hot row: every job of the account updates it. No index holds a column
-- that changes, and a quarter of each page stays free, so the new version lands on the same
-- page and the old one is pruned without vacuum.
--
-- A balance at a time, once answered, stays. An account's next transaction is later than
-- last_at, so what is asked for a time until then is final as it is read. For a later time
-- the read writes to answered_until until when it answers (internal/statement/statement.go),
-- and apply_job stamps what follows later than that: also where Postgres's clock goes back,
-- or a standby with a slower one takes over. The read waits for an apply that has stamped its
-- transaction and not committed, because it has the account's lock.
CREATE TABLE accounts (
    id             bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    user_id        uuid        NOT NULL REFERENCES users,
    number         text        NOT NULL COLLATE "C",
    currency       text        NOT NULL,
    balance        balance     NOT NULL DEFAULT 0,
    last_seq       bigint      NOT NULL DEFAULT 0,
    last_at        timestamptz NOT NULL,           -- of the last transaction; the opening, before there is one
    created_at     timestamptz NOT NULL,
    open_key       text        COLLATE "C",        -- the Idempotency-Key of the opening, where it had one,
    open_request   bytea,                          -- and the hash of what was asked with it
    answered_until timestamptz,                    -- until when balances were answered, where that is after last_at
    done_to        bigint      NOT NULL DEFAULT 0, -- no job of the account at or below this position is queued, or will be,
    settling       bigint      NOT NULL DEFAULT 0, -- nor one at or below this one, once every transaction
    settling_xid   xid8                            -- below this id has ended: 00002_apply_job.sql
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX accounts_number ON accounts (number);
CREATE UNIQUE INDEX accounts_open_key ON accounts (user_id, open_key) WHERE open_key IS NOT NULL;
CREATE INDEX accounts_user ON accounts (user_id, id);

CREATE TRIGGER accounts_are_kept BEFORE DELETE OR TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('an account outlives its history');
CREATE TRIGGER accounts_start_empty BEFORE INSERT ON accounts
    FOR EACH ROW WHEN (NEW.balance <> 0 OR NEW.last_seq <> 0)
    EXECUTE FUNCTION refuse('a balance moves only with its history');
CREATE TRIGGER accounts_form BEFORE INSERT ON accounts
    FOR EACH ROW WHEN (NOT (length(NEW.number) BETWEEN 4 AND 34 AND NEW.number !~ '[^A-Za-z0-9-]'
        AND NEW.currency ~ '^[A-Z]{3}$' AND (NEW.open_key IS NULL) = (NEW.open_request IS NULL)))
    EXECUTE FUNCTION refuse('a number is of 4 to 34 letters, digits and hyphens, a currency of three letters; a key stands with its request');
CREATE TRIGGER accounts_terms
    BEFORE UPDATE OF number, currency, user_id, created_at, open_key, open_request ON accounts
    FOR EACH ROW WHEN ((NEW.number, NEW.currency, NEW.user_id, NEW.created_at, NEW.open_key, NEW.open_request)
        IS DISTINCT FROM (OLD.number, OLD.currency, OLD.user_id, OLD.created_at, OLD.open_key, OLD.open_request))
    EXECUTE FUNCTION refuse('an account keeps its terms');

-- A balance moves by one transaction at a time and forwards in time.
-- +goose StatementBegin
CREATE FUNCTION hold_balance() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER accounts_move BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION hold_balance();

ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_are_kept, ENABLE ALWAYS TRIGGER accounts_form, ENABLE ALWAYS TRIGGER accounts_move,
    ENABLE ALWAYS TRIGGER accounts_start_empty, ENABLE ALWAYS TRIGGER accounts_terms;

-- A row is not locked without a policy that lets it be updated; the check refuses the update.
CREATE POLICY accounts_read ON accounts FOR SELECT USING (true);
CREATE POLICY accounts_open ON accounts FOR INSERT WITH CHECK (true); -- empty: accounts_start_empty
CREATE POLICY accounts_lock ON accounts FOR UPDATE USING (true) WITH CHECK (false);
ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;

-- What was asked, and how far it got.
--
--              ┌──────────▶ succeeded
--   queued ────┼──────────▶ rejected
--     ▲        └──────────▶ failed
--     └──── replay ───────────┘
--
-- Positions are drawn at insert, from one sequence. It must not cache: a cached
-- range is its connection's own, and a later job could draw a lower position.
CREATE TYPE job_status AS ENUM ('queued', 'succeeded', 'rejected', 'failed');
CREATE SEQUENCE job_positions AS bigint CACHE 1;

-- account_id has no foreign key: its check would lock the account's row for
-- every accept, in the way of the applies. The insert takes the id from the
-- accounts table in the same statement, and accounts are never deleted.
CREATE TABLE jobs (
    id              uuid        PRIMARY KEY,
    position        bigint      NOT NULL DEFAULT nextval('job_positions'),
    account_id      bigint      NOT NULL,
    user_id         uuid        NOT NULL,
    amount          amount      NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT statement_timestamp(),
    finished_at     timestamptz,
    seq             bigint,                        -- of the transaction it became
    balance_after   balance,
    type            entry_type  NOT NULL,
    status          job_status  NOT NULL DEFAULT 'queued',
    attempts        smallint    NOT NULL DEFAULT 0,
    idempotency_key text        NOT NULL COLLATE "C",
    description     text,
    failure         text                           -- why it was rejected or failed: the code
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- A key is an answer for good.
CREATE UNIQUE INDEX jobs_key ON jobs (user_id, idempotency_key);
-- An account's oldest queued job, and the sweep; its finished jobs by status. Together they
-- hold each job once. A position is that of one job of its account within each index, so
-- that no list loses a job between two pages; across them and the archive `worker verify`
-- looks, and processes do not start where the sequence would give a position again.
CREATE UNIQUE INDEX jobs_queue ON jobs (account_id, position) WHERE status = 'queued';
CREATE UNIQUE INDEX jobs_ended ON jobs (account_id, status, position) WHERE status <> 'queued';
-- To count the failed jobs, which are few.
CREATE INDEX jobs_failed ON jobs (position) WHERE status = 'failed';

CREATE TRIGGER jobs_are_kept BEFORE TRUNCATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
CREATE TRIGGER jobs_terms
    BEFORE UPDATE OF id, position, account_id, user_id, amount, created_at, type, idempotency_key, description ON jobs
    FOR EACH ROW WHEN ((NEW.id, NEW.position, NEW.account_id, NEW.user_id, NEW.amount, NEW.created_at, NEW.type,
                        NEW.idempotency_key, NEW.description)
        IS DISTINCT FROM (OLD.id, OLD.position, OLD.account_id, OLD.user_id, OLD.amount, OLD.created_at, OLD.type,
                          OLD.idempotency_key, OLD.description))
    EXECUTE FUNCTION refuse('what was asked never changes');

-- +goose StatementBegin
CREATE FUNCTION hold_new_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status OPERATOR(pg_catalog.<>) 'queued' OR NEW.attempts OPERATOR(pg_catalog.<>) 0
        OR NEW.finished_at IS NOT NULL OR NEW.seq IS NOT NULL OR NEW.balance_after IS NOT NULL OR NEW.failure IS NOT NULL THEN
        RAISE EXCEPTION '% on %: a job starts queued', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF pg_catalog.length(NEW.idempotency_key) OPERATOR(pg_catalog.=) 0 OR pg_catalog.length(NEW.idempotency_key) OPERATOR(pg_catalog.>) 255
        OR NEW.idempotency_key OPERATOR(pg_catalog.~) '[^!-~]' OR pg_catalog.length(NEW.description) OPERATOR(pg_catalog.>) 140 THEN
        RAISE EXCEPTION '% on %: a key is of 1 to 255 visible characters, a description of 140 at most', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_form BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION hold_new_job();

-- +goose StatementBegin
CREATE FUNCTION hold_job() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER jobs_states BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION hold_job();

-- A transaction that inserts jobs has its id before it draws a position: accounts.done_to
-- stands on that (00002_apply_job.sql).
-- +goose StatementBegin
CREATE FUNCTION take_transaction_id() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    taken CONSTANT xid8 := pg_catalog.pg_current_xact_id();
BEGIN
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_take_transaction_id BEFORE INSERT ON jobs FOR EACH STATEMENT EXECUTE FUNCTION take_transaction_id();

-- A replayed job is queued again at its old position. A replay takes the failure away;
-- most applies don't name that column, so they need not look.
-- +goose StatementBegin
CREATE FUNCTION lower_done_to() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE accounts SET done_to = least(done_to, NEW.position - 1) WHERE id = NEW.account_id;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_replayed AFTER UPDATE OF failure ON jobs
    FOR EACH ROW WHEN (NEW.status = 'queued' AND OLD.status = 'failed') EXECUTE FUNCTION lower_done_to();

CREATE POLICY jobs_read ON jobs FOR SELECT USING (true);
CREATE POLICY jobs_accept ON jobs FOR INSERT WITH CHECK (true); -- queued: jobs_form
CREATE POLICY jobs_fail ON jobs FOR UPDATE USING (true) WITH CHECK (status <> 'succeeded');
ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;

-- Where finished jobs go after years, with their keys: a key is an answer for good.
-- `worker archive` moves them; what moves is never looked for by an apply. The table and its
-- indexes may be moved to another, slower tablespace (ALTER TABLE archived_jobs SET
-- TABLESPACE …), but not away: each accept looks for its key here.
--
-- The columns are those of jobs, in their order: a migration that adds one to jobs adds it
-- here too, and replaces refuse_unless_archived and archive_jobs.
CREATE TABLE archived_jobs (
    LIKE jobs,
    PRIMARY KEY (id),
    CHECK (status IN ('succeeded', 'rejected'))    -- what never changes any more
);
CREATE UNIQUE INDEX archived_jobs_key ON archived_jobs (user_id, idempotency_key);
CREATE UNIQUE INDEX archived_jobs_ended ON archived_jobs (account_id, status, position);

CREATE TRIGGER archived_jobs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON archived_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
ALTER TABLE archived_jobs ENABLE ALWAYS TRIGGER archived_jobs_append_only;

CREATE POLICY archived_jobs_read ON archived_jobs FOR SELECT USING (true);
ALTER TABLE archived_jobs ENABLE ROW LEVEL SECURITY;

-- A job leaves jobs only when it stands in archived_jobs, to the letter. The columns are
-- named, as in every statement that reads the two tables together (internal/job/job.go): one
-- that is added while processes run may stand in another place in the other table.
-- +goose StatementBegin
CREATE FUNCTION refuse_unless_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM archived_jobs archived WHERE archived.id = OLD.id AND
        (archived.position, archived.account_id, archived.user_id, archived.amount, archived.created_at, archived.finished_at,
         archived.seq, archived.balance_after, archived.type, archived.status, archived.attempts, archived.idempotency_key,
         archived.description, archived.failure)
        IS NOT DISTINCT FROM
        (OLD.position, OLD.account_id, OLD.user_id, OLD.amount, OLD.created_at, OLD.finished_at,
         OLD.seq, OLD.balance_after, OLD.type, OLD.status, OLD.attempts, OLD.idempotency_key,
         OLD.description, OLD.failure))
    THEN
        RAISE EXCEPTION '% on %: a key is an answer for good', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_leave_archived BEFORE DELETE ON jobs
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_archived();

-- An archived job's key or id makes no second job, whichever statement inserts it: the row
-- is left out, as ON CONFLICT DO NOTHING leaves out that of a key in jobs.
--
-- An insert could look here before a move's commit, then meet the key in jobs, wait
-- for that commit, and find the key free. So a move takes the keys' locks, which
-- accepts share while they insert (internal/job/archive.go). To lock the key's job here
-- instead would cost each accept as much again as the look.
-- +goose StatementBegin
CREATE FUNCTION skip_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM archived_jobs WHERE user_id = NEW.user_id AND idempotency_key = NEW.idempotency_key)
        OR EXISTS (SELECT FROM archived_jobs WHERE id = NEW.id) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_skip_archived BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION skip_archived();

ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_are_kept, ENABLE ALWAYS TRIGGER jobs_form, ENABLE ALWAYS TRIGGER jobs_leave_archived,
    ENABLE ALWAYS TRIGGER jobs_replayed, ENABLE ALWAYS TRIGGER jobs_skip_archived,
    ENABLE ALWAYS TRIGGER jobs_states, ENABLE ALWAYS TRIGGER jobs_take_transaction_id, ENABLE ALWAYS TRIGGER jobs_terms;

-- History, append-only. created_at rises strictly within an account, so that a range of time
-- is a range of seq: the indexes hold that within a type; across types apply_job does, and
-- `worker verify` looks.
--
-- History is vacuumed to freeze it and analyzed for its plans' sake, a twentieth at a time:
-- at the defaults, a fifth and a tenth, the work of months comes at once.
CREATE TABLE transactions (
    account_id    bigint      NOT NULL,
    seq           bigint      NOT NULL,
    amount        amount      NOT NULL,
    balance_after balance     NOT NULL,
    created_at    timestamptz NOT NULL,
    job_id        uuid,                            -- null for an initial deposit
    type          entry_type  NOT NULL,
    description   text,
    PRIMARY KEY (account_id, seq)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
-- A job is posted once, whatever the code does. Initial deposits, which have no job, are left
-- out: nulls stand at an index's end, so no posting would be the last entry, and Postgres
-- would leave each full page half empty, not at nine tenths.
CREATE UNIQUE INDEX transactions_posting ON transactions (job_id) WHERE job_id IS NOT NULL;
-- A type's transactions by their time. An index for all times beside them would cost every
-- apply an entry: a read of both types merges these two.
CREATE UNIQUE INDEX transactions_deposit_times ON transactions (account_id, created_at) WHERE type = 'deposit';
CREATE UNIQUE INDEX transactions_withdrawal_times ON transactions (account_id, created_at) WHERE type = 'withdrawal';

CREATE TRIGGER transactions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('history is append-only');

-- +goose StatementBegin
CREATE FUNCTION hold_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER transactions_rules BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION hold_transaction();

ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_append_only, ENABLE ALWAYS TRIGGER transactions_rules;

CREATE POLICY transactions_read ON transactions FOR SELECT USING (true);
ALTER TABLE transactions ENABLE ROW LEVEL SECURITY;

-- A balance moves with its history, and a job to the archive, in functions that do it as a
-- whole. They run as their owner, so that a role that serves needs no right to write
-- balances, history or the archive, and only a role that was granted them may call them
-- (deploy/postgres/roles.sql).

-- deposit_initial makes the first transaction of an account that has none.
-- +goose StatementBegin
CREATE FUNCTION deposit_initial(account bigint, sum bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
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

-- close_history writes until when an account's balances are answered: until a time, or until
-- now where that is null or to come. It returns that time, and null where the account is not
-- the owner's.
-- +goose StatementBegin
CREATE FUNCTION close_history(owner uuid, account_number text, until timestamptz) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    answered timestamptz;
BEGIN
    UPDATE accounts SET answered_until = greatest(last_at, answered_until, least(until, clock_timestamp()))
    WHERE user_id = owner AND number = account_number
    RETURNING answered_until INTO answered;
    RETURN answered;
END
$$;
-- +goose StatementEnd

-- archive_jobs moves finished jobs from jobs to archived_jobs, and returns how many: another
-- call may have moved some. Its caller holds the locks of their keys (internal/job/archive.go).
-- A queued or failed job among them is an error, and none moves.
-- +goose StatementBegin
CREATE FUNCTION archive_jobs(ids uuid[]) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
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

REVOKE EXECUTE ON FUNCTION archive_jobs, close_history, deposit_initial, lower_done_to FROM PUBLIC;

-- The functions find the tables that stand in the schema of jobs, and the operators of
-- Postgres, whatever search_path and whatever temporary tables the session has: with an
-- empty temporary archived_jobs an archived key made a second job. The path names the
-- schema: DATABASE_URL may choose another one than public.
--
-- The clause costs 2 % of an apply for each function that has it. The functions that an apply
-- or an accept calls for its rows (hold_…, take_transaction_id) name no table, and say of which
-- schema their operators and functions are instead.
-- +goose StatementBegin
DO $$
DECLARE
    ours     text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass);
    function regproc;
BEGIN
    FOREACH function IN ARRAY ARRAY['archive_jobs', 'close_history', 'deposit_initial', 'lower_done_to', 'refuse',
        'refuse_unless_archived', 'skip_archived']::regproc[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %s, pg_temp', function, ours);
    END LOOP;
END
$$;
-- +goose StatementEnd
