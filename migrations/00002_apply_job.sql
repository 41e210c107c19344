-- +goose Up

-- What an apply does, in small statements whose plans Postgres keeps: that is faster than a single
-- statement for the whole apply (internal/bench/EXPERIMENTS.md).
--
-- apply_job applies the oldest queued job of an account, if that is the job that the caller names
-- or an older one. It locks the account, decides, moves the balance and writes the history,
-- whose trigger takes the job out of the queue. All times come from Postgres's clock. Even where
-- that clock goes back, created_at never goes back within an account, nor to a time for which
-- a balance was answered.
--
-- The account's lock keeps out every other apply of the account until the transaction ends. It
-- is NO KEY, so an insert that only refers to the account does not wait. Under READ COMMITTED
-- each statement sees what was committed before it began. So a statement that runs with the
-- lock held sees all that any apply of the account has done. A job that it sees queued stays
-- queued, because only a transaction that has the lock changes it. A job that it does not see
-- was accepted after the jobs that it sees, or at the same time, so it need not come before them.
--
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
--
-- It returns the job that it applied, the id and the number of its account, and in behind how many
-- jobs up to the named one are still queued. behind is 0 if the job is the named one; otherwise it
-- counts up to count_to jobs, and is null if count_to is 0. If no job up to the named one was
-- queued, apply_job returns no job and 0 in behind. If the named job is unknown, it returns only nulls.
--
-- The search for the oldest queued job begins above done_to, because the index of the queue
-- keeps an entry of each job that has finished since the oldest snapshot began. From the start of
-- the index, the search would read all these entries: 27 ms after 200,000 jobs.
--
-- No job at or below done_to may be queued, or be queued later, although a transaction may commit
-- long after it has drawn a position. This is how done_to is found:
--
-- 1. An apply of the job at position P records P and its own transaction id S. It got S when it
--    locked the account, after it had seen the named job, whose position is P or higher. An apply
--    whose transaction already had an id records nothing.
-- 2. Every transaction that inserts jobs takes its id before it draws a position
--    (jobs_take_transaction_id). So each transaction with an id above S draws positions above P.
--    (The snapshot's xmax would not do for S: a transaction above it may have drawn its position
--    long before.)
-- 3. Once all transactions below S have ended, a later apply sees all jobs at or below P that there
--    will ever be. Those of them that are below the oldest queued job are done: it sets done_to.
--
-- A replay lowers done_to (replay_job). For a named job at or below done_to the search begins at
-- the start. After a restore into a server with lower ids, no transaction would reach S for a long
-- time; then the apply records S anew.
--
-- It runs as the tables' owner, for roles that were granted it, and in the schema of jobs
-- whatever the session's search_path is: see the end of 00001_schema.sql.
--
-- If flush is false, its commit does not wait for its flush: a later transaction of the batch
-- flushes for it (internal/ledger/pipeline.go).
-- +goose StatementBegin
CREATE FUNCTION apply_job(up_to_job uuid, max_balance bigint, count_to bigint, flush boolean DEFAULT true,
    OUT job uuid, OUT account bigint, OUT kind entry_type, OUT outcome job_status, OUT accepted timestamptz, OUT finished timestamptz,
    OUT behind bigint, OUT account_number text)
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    up_to           bigint;      -- the named job's position
    queued          boolean;     -- whether the named job is queued
    account_is      account_status;
    total           bigint;      -- the balance, and then what it would become
    next_seq        bigint;
    last            timestamptz; -- the next transaction must be later
    job_type        entry_type;
    job_amount      bigint;
    job_description text;
    job_created     timestamptz;
    done            bigint;      -- where the search begins
    at              bigint;      -- the job's position
    settled         bigint;      -- P: becomes done_to, once
    settler         xid8;        -- S: all transactions below this have ended
    records         boolean := pg_current_xact_id_if_assigned() IS NULL; -- this apply may record P and S
    seen            pg_snapshot; -- of the search
BEGIN
    IF current_setting('transaction_read_only') = 'on' THEN -- a standby, which may not have all jobs yet
        RAISE EXCEPTION 'apply_job can do nothing here' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    SELECT account_id, position, type, amount, description, created_at,
        EXISTS (SELECT FROM queue WHERE queue.account_id = jobs.account_id AND queue.position = jobs.position)
    INTO account, up_to, job_type, job_amount, job_description, job_created, queued
    FROM jobs WHERE id = up_to_job;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF NOT queued THEN -- all may be done: then there is no lock to wait for and nothing to flush
        SELECT done_to INTO done FROM accounts WHERE id = account;
        PERFORM FROM queue WHERE account_id = account AND position > coalesce(done, 0) AND position <= up_to LIMIT 1;
        IF NOT FOUND THEN
            behind := 0;
            RETURN;
        END IF;
    END IF;
    SELECT balance, last_seq + 1, greatest(last_at, answered_until), CASE WHEN up_to > done_to THEN done_to ELSE 0 END, settling, settling_xid, status, number
    INTO total, next_seq, last, done, settled, settler, account_is, account_number
    FROM accounts WHERE id = account FOR NO KEY UPDATE;
    IF NOT FOUND THEN -- as a bad restore may leave it
        RAISE EXCEPTION 'account % is not there', account USING ERRCODE = 'foreign_key_violation';
    END IF;
    SELECT job_id, position, pg_current_snapshot() INTO job, at, seen
    FROM queue
    WHERE account_id = account AND position > done AND position <= up_to
    ORDER BY position
    LIMIT 1;
    IF NOT FOUND THEN
        behind := 0;
        RETURN;
    END IF;
    IF job <> up_to_job THEN
        SELECT type, amount, description, created_at INTO STRICT job_type, job_amount, job_description, job_created FROM jobs WHERE id = job;
    END IF;

    IF NOT flush THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    IF settler > pg_snapshot_xmax(seen) THEN -- of another server, restored here
        settler := NULL;
    END IF;
    IF settler IS NULL OR pg_snapshot_xmin(seen) >= settler THEN
        done := CASE WHEN settler IS NULL THEN done ELSE greatest(done, least(settled, at)) END;
        IF records THEN
            settled := at;
            settler := pg_current_xact_id();
        END IF;
    END IF;
    kind := job_type;
    accepted := job_created;
    finished := greatest(clock_timestamp(), job_created, last + interval '1 microsecond');
    total := total + CASE job_type WHEN 'deposit' THEN job_amount ELSE -job_amount END;
    IF total BETWEEN 0 AND max_balance AND account_is = 'open' THEN
        outcome := 'succeeded';
        UPDATE accounts SET balance = total, last_seq = next_seq, last_at = finished,
            done_to = done, settling = settled, settling_xid = settler
        WHERE id = account;
        INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, position, created_at)
        VALUES (account, next_seq, job_type, job_amount, total, job_description, job, at, finished);
    ELSE
        outcome := 'rejected';
        INSERT INTO rejections (account_id, position, job_id, finished_at, failure)
        VALUES (account, at, job, finished, CASE WHEN account_is = 'frozen' THEN 'account_frozen' WHEN account_is = 'closed' THEN 'account_closed'
            WHEN total < 0 THEN 'insufficient_funds' ELSE 'balance_limit_exceeded' END);
        -- What takes effect next gets a later time.
        UPDATE accounts SET answered_until = finished, done_to = done, settling = settled, settling_xid = settler WHERE id = account;
    END IF;

    IF job = up_to_job THEN
        behind := 0;
    ELSIF count_to > 0 THEN
        SELECT count(*) INTO behind
        FROM (SELECT FROM queue WHERE account_id = account AND position > at AND position <= up_to LIMIT count_to) counted;
    END IF;
END
$$;
-- +goose StatementEnd

REVOKE EXECUTE ON FUNCTION apply_job FROM PUBLIC;

-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION apply_job SET search_path = pg_catalog, %s, pg_temp',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass));
END
$$;
-- +goose StatementEnd
