-- +goose Up

-- The tables, and the rules of the bank, which Postgres enforces for every role and in every
-- session.
--
-- Rules of tables that an apply changes stand in triggers and not in CHECK constraints. Postgres
-- parses each constraint, and each trigger's condition, anew for every statement that changes a
-- row: together, about a third of what an apply costs. It reads the body of a function once a
-- connection, and a trigger BEFORE UPDATE OF some columns only if a statement sets one of them.
--
-- Triggers are ENABLE ALWAYS: session_replication_role = replica switches off the others. A
-- database that receives these tables by logical replication disables them until it
-- serves; `worker verify` names those that are not as they stand here
-- (internal/ledger/guards.go). A migration that replaces a trigger enables it again.
--
-- Row level security binds every role but the owner of the tables. Whatever such a role was
-- granted, it moves no balance, writes no history, ends no job as succeeded and archives no
-- job, except by the functions apply_job, deposit_initial and archive_jobs, which run as their
-- owner. The policies cost the owner nothing, so they cost an apply nothing. (A deferred trigger
-- that compares each balance with its history made an apply 17 % slower.) A pg_dump runs as the
-- owner, a superuser or a role that has BYPASSRLS.

-- +goose StatementBegin
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END
$$;
-- +goose StatementEnd

-- The id of the installation to which this database belongs. Processes keep the id in Redis too,
-- so that they notice another installation that uses the same queues. A copy of the database has
-- the same id, until `UPDATE installation SET id = gen_random_uuid()`.
CREATE TABLE installation (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    id      uuid    NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO installation DEFAULT VALUES;

-- The users. Emails compare by email_key, which the API makes (internal/auth/users.go):
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

-- The refresh tokens, by their hashes. parent is the token that the session spent for this one.
-- A spent token may be used once more within a short time; closed says that it may not any more.
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
-- Jobs move the balance of an open account only. closed is final.
CREATE TYPE account_status AS ENUM ('open', 'frozen', 'closed');

-- The balance is the hot row: every job of the account updates it. No index holds a column
-- that changes, and a quarter of each page stays free, so the new version lands on the same
-- page and the old one is pruned without vacuum.
--
-- A balance at a time never changes once a client was told of it. An account's next transaction
-- is later than last_at, so a balance at a time until then is final. For a later time the read
-- writes that time to answered_until (internal/statement/statement.go), and apply_job stamps the
-- next transaction later than that, even where Postgres's clock goes back or a standby with a
-- slower clock takes over. The read waits for an apply that has stamped its transaction and not
-- committed, because the apply holds the account's lock.
--
-- A rejection and a failure write their own time there too. So the times of an account's outcomes
-- rise strictly, in the order in which they took effect, and event streams read by time
-- (internal/event).
CREATE TABLE accounts (
    id             bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    user_id        uuid        NOT NULL REFERENCES users,
    number         text        NOT NULL COLLATE "C",
    currency       text        NOT NULL,
    balance        balance     NOT NULL DEFAULT 0,
    last_seq       bigint      NOT NULL DEFAULT 0,
    last_at        timestamptz NOT NULL,           -- of the last transaction; before the first, of the opening
    created_at     timestamptz NOT NULL,
    open_key       text        COLLATE "C",        -- the Idempotency-Key of the opening, where it had one,
    open_request   bytea,                          -- and the hash of the request that came with it
    answered_until timestamptz,                    -- the latest time of an answered balance, a rejection, a failure or an action, where that is after last_at
    -- No job of the account at or below position done_to is queued, or will be. Once every transaction below
    -- settling_xid has ended, the same is true of settling: 00002_apply_job.sql.
    done_to        bigint      NOT NULL DEFAULT 0,
    settling       bigint      NOT NULL DEFAULT 0,
    settling_xid   xid8,
    status         account_status NOT NULL DEFAULT 'open' -- set by operator_actions
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX accounts_number ON accounts (number);
CREATE UNIQUE INDEX accounts_open_key ON accounts (user_id, open_key) WHERE open_key IS NOT NULL;
CREATE INDEX accounts_user ON accounts (user_id, id);

CREATE TRIGGER accounts_are_kept BEFORE DELETE OR TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('an account outlives its history');
CREATE TRIGGER accounts_start_empty BEFORE INSERT ON accounts
    FOR EACH ROW WHEN (NEW.balance <> 0 OR NEW.last_seq <> 0 OR NEW.status <> 'open')
    EXECUTE FUNCTION refuse('an account begins open, and its balance moves only with its history');
CREATE TRIGGER accounts_form BEFORE INSERT ON accounts
    FOR EACH ROW WHEN (NOT (length(NEW.number) BETWEEN 4 AND 34 AND NEW.number !~ '[^A-Za-z0-9-]'
        AND NEW.currency ~ '^[A-Z]{3}$' AND (NEW.open_key IS NULL) = (NEW.open_request IS NULL)))
    EXECUTE FUNCTION refuse('a number is of 4 to 34 letters, digits and hyphens, a currency of three letters; a key stands with its request');
CREATE TRIGGER accounts_terms
    BEFORE UPDATE OF number, currency, user_id, created_at, open_key, open_request ON accounts
    FOR EACH ROW WHEN ((NEW.number, NEW.currency, NEW.user_id, NEW.created_at, NEW.open_key, NEW.open_request)
        IS DISTINCT FROM (OLD.number, OLD.currency, OLD.user_id, OLD.created_at, OLD.open_key, OLD.open_request))
    EXECUTE FUNCTION refuse('an account keeps its terms');

-- Only the trigger of operator_actions changes a status: this condition then sees depth 1.
CREATE TRIGGER accounts_status BEFORE UPDATE OF status ON accounts
    FOR EACH ROW WHEN (NEW.status IS DISTINCT FROM OLD.status AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION refuse('a status changes by an operator''s action');

-- A balance moves by one transaction at a time, each later than the last, and on an open account.
-- +goose StatementBegin
CREATE FUNCTION check_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (NEW.last_seq OPERATOR(pg_catalog.=) (OLD.last_seq OPERATOR(pg_catalog.+) 1) AND NEW.last_at OPERATOR(pg_catalog.>) OLD.last_at
            AND NEW.status OPERATOR(pg_catalog.=) 'open'
         OR NEW.last_seq OPERATOR(pg_catalog.=) OLD.last_seq AND NEW.balance OPERATOR(pg_catalog.=) OLD.balance
            AND NEW.last_at OPERATOR(pg_catalog.=) OLD.last_at) THEN
        RAISE EXCEPTION '% on %: a balance moves only with its history, and on an open account', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER accounts_move BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION check_balance();

ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_are_kept, ENABLE ALWAYS TRIGGER accounts_form, ENABLE ALWAYS TRIGGER accounts_move,
    ENABLE ALWAYS TRIGGER accounts_start_empty, ENABLE ALWAYS TRIGGER accounts_status, ENABLE ALWAYS TRIGGER accounts_terms;

-- To lock a row, a role needs a policy that lets it update the row. The check refuses the update.
CREATE POLICY accounts_read ON accounts FOR SELECT USING (true);
CREATE POLICY accounts_open ON accounts FOR INSERT WITH CHECK (true); -- empty: accounts_start_empty
CREATE POLICY accounts_lock ON accounts FOR UPDATE USING (true) WITH CHECK (false);
ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;

-- A job is in one state (drawn in docs/architecture.md), and one row states it: its row in queue,
-- transactions (succeeded), rejections (rejected) or failures (failed).
--
-- jobs holds the requests, and is never rewritten. A trigger of jobs puts each new job into
-- the queue. The triggers of the three outcomes take it out, and refuse an outcome whose job
-- is not queued. A replay, an operator's action, deletes the failure, whose trigger puts the job
-- back. No other statement inserts or deletes rows of the queue. The view job_states joins a job
-- and its state.
--
-- An insert draws the position from one sequence. The sequence must not cache: each connection
-- would have a range of its own, and a later job could draw a lower position.
CREATE TYPE job_status AS ENUM ('queued', 'succeeded', 'rejected', 'failed');
CREATE SEQUENCE job_positions AS bigint CACHE 1;

-- account_id has no foreign key: to check it, every accept would lock the account's row, and
-- applies would wait. The insert takes the id from the accounts table in the same statement,
-- and accounts are never deleted.
CREATE TABLE jobs (
    id              uuid        PRIMARY KEY,
    position        bigint      NOT NULL DEFAULT nextval('job_positions'),
    account_id      bigint      NOT NULL,
    user_id         uuid        NOT NULL,
    amount          amount      NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT statement_timestamp(),
    type            entry_type  NOT NULL,
    idempotency_key text        NOT NULL COLLATE "C",
    description     text
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
-- A key is an answer for good.
CREATE UNIQUE INDEX jobs_key ON jobs (user_id, idempotency_key);

CREATE TRIGGER jobs_are_kept BEFORE TRUNCATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
CREATE TRIGGER jobs_terms BEFORE UPDATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('what was asked never changes');

-- +goose StatementBegin
CREATE FUNCTION check_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.length(NEW.idempotency_key) OPERATOR(pg_catalog.=) 0 OR pg_catalog.length(NEW.idempotency_key) OPERATOR(pg_catalog.>) 255
        OR NEW.idempotency_key OPERATOR(pg_catalog.~) '[^!-~]' OR pg_catalog.length(NEW.description) OPERATOR(pg_catalog.>) 140 THEN
        RAISE EXCEPTION '% on %: a key is of 1 to 255 visible characters, a description of 140 at most', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_form BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION check_job();

-- A transaction that inserts jobs has its id before it draws a position: the proof of
-- accounts.done_to needs that (00002_apply_job.sql).
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

-- +goose StatementBegin
CREATE FUNCTION enter_queue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO queue (account_id, position, job_id) SELECT account_id, position, id FROM accepted;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_enter_queue AFTER INSERT ON jobs REFERENCING NEW TABLE AS accepted
    FOR EACH STATEMENT EXECUTE FUNCTION enter_queue();

CREATE POLICY jobs_read ON jobs FOR SELECT USING (true);
CREATE POLICY jobs_accept ON jobs FOR INSERT WITH CHECK (true); -- queued: jobs_enter_queue
ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;

-- The queued jobs. The primary key finds an account's oldest one, and serves the sweep. A
-- row lives for milliseconds, so most rows of the table are dead. Vacuum removes them early, but
-- does not truncate the table: that takes a lock which stops every accept and apply.
CREATE TABLE queue (
    account_id bigint   NOT NULL,
    position   bigint   NOT NULL,
    job_id     uuid     NOT NULL,
    attempts   smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (account_id, position)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false);

-- Only a trigger of another table may insert or delete rows: then this one runs at depth 2.
-- +goose StatementBegin
CREATE FUNCTION check_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.<) 2 THEN
        RAISE EXCEPTION '% on %: a job enters the queue by its accept or replay and leaves it by its outcome', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER queue_rows BEFORE INSERT OR DELETE ON queue FOR EACH STATEMENT EXECUTE FUNCTION check_queue();
CREATE TRIGGER queue_attempts BEFORE UPDATE OF attempts ON queue
    FOR EACH ROW WHEN (NOT (NEW.attempts >= 0)) EXECUTE FUNCTION refuse('attempts are counted from 0');
CREATE TRIGGER queue_is_kept BEFORE TRUNCATE ON queue
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a job leaves the queue by its outcome');
CREATE TRIGGER queue_terms BEFORE UPDATE OF account_id, position, job_id ON queue
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('what was asked never changes');

ALTER TABLE queue ENABLE ALWAYS TRIGGER queue_attempts, ENABLE ALWAYS TRIGGER queue_is_kept, ENABLE ALWAYS TRIGGER queue_rows,
    ENABLE ALWAYS TRIGGER queue_terms;

CREATE POLICY queue_read ON queue FOR SELECT USING (true);
CREATE POLICY queue_count ON queue FOR UPDATE USING (true); -- attempts alone: queue_terms
ALTER TABLE queue ENABLE ROW LEVEL SECURITY;

-- The jobs that a rule of the bank has rejected. failure is the rule's code.
CREATE TABLE rejections (
    account_id  bigint      NOT NULL,
    position    bigint      NOT NULL,
    job_id      uuid        NOT NULL,
    finished_at timestamptz NOT NULL,
    failure     text        NOT NULL,
    PRIMARY KEY (account_id, position)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
-- In the order in which they took effect, for event streams.
CREATE INDEX rejections_times ON rejections (account_id, finished_at);

-- The jobs that could not be applied: few, and they wait for an operator's replay.
CREATE TABLE failures (
    account_id  bigint      NOT NULL,
    position    bigint      NOT NULL,
    job_id      uuid        NOT NULL,
    attempts    smallint    NOT NULL DEFAULT 0,
    finished_at timestamptz NOT NULL,
    failure     text        NOT NULL,
    detail      text,                              -- Postgres's error, for the operator alone
    PRIMARY KEY (account_id, position)
);
CREATE INDEX failures_times ON failures (account_id, finished_at);

-- A job that is rejected or failed leaves the queue. The role that writes a failure has no
-- right to delete there: the function runs as its owner.
--
-- No insert of an outcome may have ON CONFLICT DO NOTHING: on a conflict, it would take the job
-- out of the queue and insert no outcome. Only the tables' owner can insert transactions and
-- rejections, and `worker verify` reports such a job.
-- +goose StatementBegin
CREATE FUNCTION leave_queue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    DELETE FROM queue WHERE account_id = NEW.account_id AND position = NEW.position AND job_id = NEW.job_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% on %: its job is not queued', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER rejections_leave_queue BEFORE INSERT ON rejections FOR EACH ROW EXECUTE FUNCTION leave_queue();
CREATE TRIGGER failures_leave_queue BEFORE INSERT ON failures FOR EACH ROW EXECUTE FUNCTION leave_queue();

-- A failure gets a time after every earlier outcome of its account, as a rejection gets from
-- apply_job. An account that has lost its row has no other outcomes either.
-- +goose StatementBegin
CREATE FUNCTION stamp_failure() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    stamped timestamptz;
BEGIN
    UPDATE accounts SET answered_until = greatest(NEW.finished_at, last_at + interval '1 microsecond', answered_until + interval '1 microsecond')
    WHERE id = NEW.account_id AND NEW.finished_at IS NOT NULL
    RETURNING answered_until INTO stamped;
    NEW.finished_at := coalesce(stamped, NEW.finished_at);
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER failures_stamp BEFORE INSERT ON failures FOR EACH ROW EXECUTE FUNCTION stamp_failure();

CREATE TRIGGER rejections_are_kept BEFORE UPDATE OR TRUNCATE ON rejections
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a finished job never changes');
CREATE TRIGGER failures_are_kept BEFORE UPDATE OR TRUNCATE ON failures
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a failed job changes by its replay');

-- A replayed job is queued again at its old position.
-- +goose StatementBegin
CREATE FUNCTION replay_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO queue (account_id, position, job_id) VALUES (OLD.account_id, OLD.position, OLD.job_id);
    UPDATE accounts SET done_to = least(done_to, OLD.position - 1) WHERE id = OLD.account_id;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER failures_replay AFTER DELETE ON failures FOR EACH ROW EXECUTE FUNCTION replay_job();
CREATE TRIGGER failures_stay BEFORE DELETE ON failures
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse('a failed job is replayed by an operator''s action');

CREATE POLICY rejections_read ON rejections FOR SELECT USING (true);
ALTER TABLE rejections ENABLE ROW LEVEL SECURITY;
CREATE POLICY failures_read ON failures FOR SELECT USING (true);
CREATE POLICY failures_fail ON failures FOR INSERT WITH CHECK (true); -- a queued job: failures_leave_queue
ALTER TABLE failures ENABLE ROW LEVEL SECURITY;

ALTER TABLE failures ENABLE ALWAYS TRIGGER failures_are_kept, ENABLE ALWAYS TRIGGER failures_leave_queue, ENABLE ALWAYS TRIGGER failures_replay,
    ENABLE ALWAYS TRIGGER failures_stamp, ENABLE ALWAYS TRIGGER failures_stay;

-- What operators have done to accounts and jobs: who, when and why. The insert of an action makes
-- the change, by its trigger, so no change lacks its row, and a crash leaves both or neither.
--
-- The trigger locks the account, as an apply does. So each apply of the account sees the change,
-- or commits before it. It drops the row of an action that has nothing to change: the account has
-- that status, or the job is not failed. The time of an action is later than all that happened on
-- the account before, and answered_until makes each later transaction later than the action. So
-- the times show which transactions happened while an account was frozen: none.
CREATE TYPE operator_action AS ENUM ('freeze', 'unfreeze', 'close', 'replay');
CREATE TABLE operator_actions (
    account_id bigint          NOT NULL,
    at         timestamptz     NOT NULL,
    action     operator_action NOT NULL,
    job_id     uuid            CHECK ((action = 'replay') = (job_id IS NOT NULL)),
    person     text            NOT NULL CHECK (length(person) BETWEEN 1 AND 100), -- as the command names them
    role       text            NOT NULL,                                          -- that logged in
    reason     text            NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    PRIMARY KEY (account_id, at)
);

-- +goose StatementBegin
CREATE FUNCTION act_for_operator() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    was     account_status;
    becomes CONSTANT account_status := CASE NEW.action WHEN 'freeze' THEN 'frozen' WHEN 'unfreeze' THEN 'open' WHEN 'close' THEN 'closed' END;
    last    timestamptz; -- the action must be later
BEGIN
    SELECT status, greatest(last_at, answered_until) INTO was, last FROM accounts WHERE id = NEW.account_id FOR NO KEY UPDATE;
    last := greatest(last, (SELECT max(at) FROM operator_actions WHERE account_id = NEW.account_id));
    NEW.at := greatest(clock_timestamp(), last + interval '1 microsecond');
    NEW.role := session_user;
    IF NEW.action = 'replay' THEN -- also of an account that a bad restore has lost
        DELETE FROM failures USING jobs WHERE jobs.id = NEW.job_id AND jobs.account_id = NEW.account_id
            AND failures.account_id = jobs.account_id AND failures.position = jobs.position;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        RETURN NEW;
    END IF;
    IF was IS NULL THEN
        RAISE EXCEPTION 'account % is not there', NEW.account_id USING ERRCODE = 'foreign_key_violation';
    ELSIF was = becomes THEN
        RETURN NULL;
    ELSIF was = 'closed' THEN
        RAISE EXCEPTION '% on %: a closed account stays closed', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'closed_accounts_stay';
    END IF;
    UPDATE accounts SET status = becomes, answered_until = NEW.at WHERE id = NEW.account_id;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
REVOKE EXECUTE ON FUNCTION act_for_operator FROM PUBLIC;
CREATE TRIGGER operator_actions_act BEFORE INSERT ON operator_actions FOR EACH ROW EXECUTE FUNCTION act_for_operator();
CREATE TRIGGER operator_actions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('what an operator has done stays written');
ALTER TABLE operator_actions ENABLE ALWAYS TRIGGER operator_actions_act, ENABLE ALWAYS TRIGGER operator_actions_append_only;

CREATE POLICY operator_actions_read ON operator_actions FOR SELECT USING (true);
CREATE POLICY operator_actions_act ON operator_actions FOR INSERT WITH CHECK (true); -- granted to operators alone: roles.sql
ALTER TABLE operator_actions ENABLE ROW LEVEL SECURITY;

-- History, append-only. created_at rises strictly within an account, so that a range of time
-- is a range of seq: it is the account's last_at, which check_balance lets only rise. Unique
-- indexes refuse equal times within a type, and `worker verify` checks all.
--
-- Autovacuum freezes and analyzes history after each twentieth that is new. With the defaults, a
-- fifth and a tenth, it would do the work of months at once.
CREATE TABLE transactions (
    account_id    bigint      NOT NULL,
    seq           bigint      NOT NULL,
    amount        amount      NOT NULL,
    balance_after balance     NOT NULL,
    created_at    timestamptz NOT NULL,
    job_id        uuid,                            -- null for an initial deposit
    position      bigint,                          -- of the job
    type          entry_type  NOT NULL,
    description   text,
    PRIMARY KEY (account_id, seq)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
-- This index makes a second transaction of a job impossible, whatever the code does. It also
-- lists an account's jobs that succeeded. Initial deposits have no job and are left out.
CREATE UNIQUE INDEX transactions_jobs ON transactions (account_id, position) WHERE position IS NOT NULL;
-- The transactions of each type by their time. A read of both types merges the two indexes: a
-- third one for all types would cost every apply an entry.
CREATE UNIQUE INDEX transactions_deposit_times ON transactions (account_id, created_at) WHERE type = 'deposit';
CREATE UNIQUE INDEX transactions_withdrawal_times ON transactions (account_id, created_at) WHERE type = 'withdrawal';

CREATE TRIGGER transactions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('history is append-only');

-- check_transaction also takes the job that succeeds out of the queue. Every apply runs it, so it
-- has no SET clause (see the end of this file) and names the schema of the queue instead.
-- +goose StatementBegin
DO $do$
BEGIN
    EXECUTE format($function$
CREATE FUNCTION check_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.job_id IS NOT NULL THEN
        DELETE FROM %1$s.queue WHERE account_id OPERATOR(pg_catalog.=) NEW.account_id AND position OPERATOR(pg_catalog.=) NEW.position
            AND job_id OPERATOR(pg_catalog.=) NEW.job_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION '%% on %%: its job is not queued', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    ELSIF NOT (NEW.position IS NULL AND NEW.seq OPERATOR(pg_catalog.=) 1 AND NEW.type OPERATOR(pg_catalog.=) 'deposit') THEN
        RAISE EXCEPTION '%% on %%: a transaction has its job, but for an initial deposit', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT (NEW.seq OPERATOR(pg_catalog.>=) 1) THEN
        RAISE EXCEPTION '%% on %%: a history begins with transaction 1', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- The balance before the transaction can't be negative either.
    IF NOT (NEW.type OPERATOR(pg_catalog.=) 'withdrawal' OR NEW.balance_after OPERATOR(pg_catalog.>=) NEW.amount) THEN
        RAISE EXCEPTION '%% on %%: no balance was ever negative', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$
$function$, (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'queue'::regclass));
END
$do$;
-- +goose StatementEnd
CREATE TRIGGER transactions_rules BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION check_transaction();

ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_append_only, ENABLE ALWAYS TRIGGER transactions_rules;

CREATE POLICY transactions_read ON transactions FOR SELECT USING (true);
ALTER TABLE transactions ENABLE ROW LEVEL SECURITY;

-- The old jobs that `worker archive` has moved here, with their keys: a key is an answer for
-- good. No apply reads them. The table and its indexes may be moved to a slower tablespace
-- (ALTER TABLE archived_jobs SET TABLESPACE …), but must stay in the database: each accept
-- looks for its key here.
--
-- A row holds all that job_states showed of its job. The transaction of a job that succeeded
-- stays in the history; the rejection of a job that was rejected is deleted.
CREATE TABLE archived_jobs (
    id              uuid        PRIMARY KEY,
    position        bigint      NOT NULL,
    account_id      bigint      NOT NULL,
    user_id         uuid        NOT NULL,
    amount          amount      NOT NULL,
    created_at      timestamptz NOT NULL,
    finished_at     timestamptz NOT NULL,
    seq             bigint,                        -- of the transaction it became
    balance_after   balance,
    type            entry_type  NOT NULL,
    status          job_status  NOT NULL CHECK (status IN ('succeeded', 'rejected')), -- the final ones
    idempotency_key text        NOT NULL COLLATE "C",
    description     text,
    failure         text                           -- why it was rejected: the code
);
CREATE UNIQUE INDEX archived_jobs_key ON archived_jobs (user_id, idempotency_key);
-- An account's archived jobs that were rejected. Those that succeeded are listed by their transactions.
CREATE UNIQUE INDEX archived_jobs_rejected ON archived_jobs (account_id, position) WHERE status = 'rejected';
CREATE INDEX archived_jobs_rejected_times ON archived_jobs (account_id, finished_at) WHERE status = 'rejected';

CREATE TRIGGER archived_jobs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON archived_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
ALTER TABLE archived_jobs ENABLE ALWAYS TRIGGER archived_jobs_append_only;

CREATE POLICY archived_jobs_read ON archived_jobs FOR SELECT USING (true);
ALTER TABLE archived_jobs ENABLE ROW LEVEL SECURITY;

-- job_states shows each job that is not archived, with its state. finished_by is the xmin of the
-- row that states its outcome, null while it is queued; postgres.Showing reads it.
CREATE VIEW job_states WITH (security_invoker = true) AS
SELECT job.id, job.position, job.account_id, job.user_id, job.amount, job.created_at,
    coalesce(transaction.created_at, rejection.finished_at, failure.finished_at) AS finished_at,
    transaction.seq, transaction.balance_after, job.type,
    CASE WHEN transaction.job_id IS NOT NULL THEN 'succeeded' WHEN rejection.job_id IS NOT NULL THEN 'rejected'
        WHEN failure.job_id IS NOT NULL THEN 'failed' ELSE 'queued' END::job_status AS status,
    job.idempotency_key, job.description, coalesce(rejection.failure, failure.failure) AS failure,
    coalesce(queue.attempts, failure.attempts, 0) AS attempts, job.xmin AS accepted_by,
    coalesce(transaction.xmin, rejection.xmin, failure.xmin) AS finished_by
FROM jobs job
    LEFT JOIN transactions transaction ON transaction.account_id = job.account_id AND transaction.position = job.position
    LEFT JOIN rejections rejection ON rejection.account_id = job.account_id AND rejection.position = job.position
    LEFT JOIN failures failure ON failure.account_id = job.account_id AND failure.position = job.position
    LEFT JOIN queue ON queue.account_id = job.account_id AND queue.position = job.position;

-- A job is deleted from jobs only when archived_jobs holds it with every column. Its rejection
-- is deleted after it. The columns are named, as in every statement that reads both tables
-- (internal/job/job.go): a column that is added while processes run may have another place in
-- the other table.
-- +goose StatementBegin
CREATE FUNCTION refuse_unless_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM archived_jobs archived JOIN job_states job USING (id) WHERE id = OLD.id AND
        (archived.position, archived.account_id, archived.user_id, archived.amount, archived.created_at, archived.finished_at,
         archived.seq, archived.balance_after, archived.type, archived.status, archived.idempotency_key,
         archived.description, archived.failure)
        IS NOT DISTINCT FROM
        (job.position, job.account_id, job.user_id, job.amount, job.created_at, job.finished_at,
         job.seq, job.balance_after, job.type, job.status, job.idempotency_key,
         job.description, job.failure))
    THEN
        RAISE EXCEPTION '% on %: a key is an answer for good', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$;
CREATE FUNCTION refuse_unless_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM jobs WHERE id = OLD.job_id) OR NOT EXISTS (SELECT FROM archived_jobs WHERE id = OLD.job_id) THEN
        RAISE EXCEPTION '% on %: a finished job never changes', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER jobs_leave_archived BEFORE DELETE ON jobs
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_archived();
CREATE TRIGGER rejections_leave_archived BEFORE DELETE ON rejections
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_moved();

-- No statement can insert a second job with an archived job's key or id: the trigger skips the
-- row, as ON CONFLICT DO NOTHING skips the row of a key that is in jobs.
--
-- An insert could look here before a move commits, then meet the key in jobs, wait for that
-- commit, and find the key free. So a move takes the keys' locks, which accepts share while they
-- insert (internal/job/archive.go). To lock the key's job here instead would cost twice as much.
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

ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_are_kept, ENABLE ALWAYS TRIGGER jobs_enter_queue, ENABLE ALWAYS TRIGGER jobs_form,
    ENABLE ALWAYS TRIGGER jobs_leave_archived, ENABLE ALWAYS TRIGGER jobs_skip_archived, ENABLE ALWAYS TRIGGER jobs_take_transaction_id,
    ENABLE ALWAYS TRIGGER jobs_terms;
ALTER TABLE rejections ENABLE ALWAYS TRIGGER rejections_are_kept, ENABLE ALWAYS TRIGGER rejections_leave_queue,
    ENABLE ALWAYS TRIGGER rejections_leave_archived;

-- These functions move a balance together with its history, and a job to the archive. They run as
-- their owner, so a serving role needs no right to write balances, history or the archive. Only a
-- role that was granted them may call them (deploy/postgres/roles.sql).

-- deposit_initial makes the first transaction of an account that has none.
-- +goose StatementBegin
CREATE FUNCTION deposit_initial(account bigint, initial_amount bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    deposited timestamptz;
BEGIN
    UPDATE accounts SET balance = initial_amount, last_seq = 1, last_at = last_at + interval '1 microsecond'
    WHERE id = account AND last_seq = 0
    RETURNING last_at INTO deposited;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'account % has a history, or does not exist', account USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
    VALUES (account, 1, 'deposit', initial_amount, initial_amount, deposited);
END
$$;
-- +goose StatementEnd

-- close_history records the time until which an account's balances are answered: the given time,
-- or now if that is null or later than now. It returns that time, or null if the account is not
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

-- archive_jobs moves finished jobs from jobs to archived_jobs, and returns how many it moved;
-- another call may have moved some before. The caller holds the locks of their keys
-- (internal/job/archive.go). If a job among them is queued or failed, it raises an error and
-- moves no job.
-- +goose StatementBegin
CREATE FUNCTION archive_jobs(ids uuid[]) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    moved bigint;
BEGIN
    INSERT INTO archived_jobs (id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after,
        type, status, idempotency_key, description, failure)
    SELECT id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after,
        type, status, idempotency_key, description, failure
    FROM job_states WHERE id = ANY (ids);
    DELETE FROM jobs WHERE id = ANY (ids); -- jobs_leave_archived looks whether each stands in the archive
    GET DIAGNOSTICS moved = ROW_COUNT;
    DELETE FROM rejections USING archived_jobs archived
    WHERE archived.id = ANY (ids) AND archived.status = 'rejected'
        AND rejections.account_id = archived.account_id AND rejections.position = archived.position;
    RETURN moved;
END
$$;
-- +goose StatementEnd

REVOKE EXECUTE ON FUNCTION archive_jobs, close_history, deposit_initial, leave_queue, enter_queue, replay_job, stamp_failure FROM PUBLIC;

-- Each function sets its search_path, so that it finds the tables in the schema of jobs and the
-- operators of Postgres, whatever search_path and temporary tables the session has. (Otherwise an
-- archived key could make a second job: a session with an empty temporary table archived_jobs
-- hid the archive.) DATABASE_URL may choose another schema than public.
--
-- A SET clause costs 2 % of an apply for each function that has it. So the
-- functions that every apply or accept calls (check_…, take_transaction_id) have none. They name
-- the schema of each operator, function and table instead.
-- +goose StatementBegin
DO $$
DECLARE
    ours     text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass);
    function regproc;
BEGIN
    FOREACH function IN ARRAY ARRAY['act_for_operator', 'archive_jobs', 'close_history', 'deposit_initial', 'leave_queue', 'enter_queue',
        'refuse', 'refuse_unless_archived', 'refuse_unless_moved', 'replay_job', 'skip_archived', 'stamp_failure']::regproc[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %s, pg_temp', function, ours);
    END LOOP;
END
$$;
-- +goose StatementEnd
