-- +goose Up

-- What an apply does, in steps whose plans Postgres keeps: it goes through some small ones
-- sooner than through a single one for all (internal/bench/EXPERIMENTS.md).
--
-- apply_job applies the oldest queued job of an account, up to a job that the caller names: it
-- locks the account, decides, moves the balance and writes the history, whose trigger takes
-- the job out of the queue. All times come from Postgres's clock; created_at never goes back
-- within an account, nor to a time for which a balance was answered, even where that clock
-- does.
--
-- The account's lock holds every other apply of it off until the transaction ends; NO
-- KEY, so nothing that only refers to the account has to wait. Under READ COMMITTED each
-- statement sees what was committed before it began. So a statement that runs with the lock
-- held sees all that any apply of the account has done, and a job that is queued then stays
-- so: only a transaction that has the lock changes it. A job that the statement does not see
-- need not come before one that it sees, which was committed before the other was sent.
--
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
--
-- It answers with the job, and with how many jobs are queued behind it then, up to the named
-- one: 0 where it is the named job itself; else counted as far as count_to, and null where
-- that is 0. Where no job up to the named one was queued, it answers with no job and 0
-- behind, and where the named job is unknown with nulls alone.
--
-- The search for the oldest queued job begins above done_to, because the index of the queue
-- keeps an entry of each job that has finished since the oldest snapshot began: while one is
-- held, the search would read all of them, for 27 ms after 200,000 jobs. No queued job may be
-- missed below done_to, though a job that draws a position may be committed much later.
-- So an apply that takes the job at position P notes P, and the id S that the next
-- transaction will have. Every transaction that inserts jobs has its id before it draws a
-- position (jobs_take_transaction_id), so each with an id from S on draws positions above P.
-- Once all below S have ended, a search sees all jobs at or below P that there will ever be:
-- what is below the job that it finds, and not above P, is done. A replay lowers done_to
-- (replay_job). For a named job at or below done_to the search begins at the start. After a
-- restore into a server with lower ids, S would not be reached for long: it is noted anew.
--
-- It runs as the tables' owner, for roles that were granted it, and in the schema of jobs
-- whatever the session's search_path: 00001_schema.sql.
--
-- Where flush is false its commit need not wait until it is flushed: a later transaction of
-- the batch flushes for it (internal/ledger/apply.go).
-- +goose StatementBegin
CREATE FUNCTION apply_job(up_to_job uuid, max_balance bigint, count_to bigint, flush boolean DEFAULT true,
    OUT job uuid, OUT kind entry_type, OUT outcome job_status, OUT accepted timestamptz, OUT finished timestamptz, OUT behind bigint)
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    account  bigint;
    up_to    bigint;      -- the named job's position
    queued   boolean;     -- the named job is
    total    bigint;      -- the balance, and then what it would become
    next_seq bigint;
    last     timestamptz; -- what the next transaction is later than
    job_type entry_type;
    sum      bigint;
    words    text;
    asked    timestamptz;
    done     bigint;      -- where the search begins
    at       bigint;      -- the job's position
    settled  bigint;      -- what becomes done_to, once
    settler  xid8;        -- all below this have ended
    seen     pg_snapshot; -- of the search
BEGIN
    IF current_setting('transaction_read_only') = 'on' THEN -- a standby, which may not know all yet
        RAISE EXCEPTION 'apply_job can do nothing here' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    SELECT account_id, position, type, amount, description, created_at,
        EXISTS (SELECT FROM queue WHERE queue.account_id = jobs.account_id AND queue.position = jobs.position)
    INTO account, up_to, job_type, sum, words, asked, queued
    FROM jobs WHERE id = up_to_job;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF NOT queued THEN -- all may be done: no lock to wait for, nothing to flush
        SELECT done_to INTO done FROM accounts WHERE id = account;
        PERFORM FROM queue WHERE account_id = account AND position > coalesce(done, 0) AND position <= up_to LIMIT 1;
        IF NOT FOUND THEN
            behind := 0;
            RETURN;
        END IF;
    END IF;
    SELECT balance, last_seq + 1, greatest(last_at, answered_until), CASE WHEN up_to > done_to THEN done_to ELSE 0 END, settling, settling_xid
    INTO total, next_seq, last, done, settled, settler
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
        SELECT type, amount, description, created_at INTO STRICT job_type, sum, words, asked FROM jobs WHERE id = job;
    END IF;

    IF NOT flush THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    IF settler > pg_snapshot_xmax(seen) THEN -- of another server
        settler := NULL;
    END IF;
    IF settler IS NULL OR pg_snapshot_xmin(seen) >= settler THEN
        done := CASE WHEN settler IS NULL THEN done ELSE greatest(done, least(settled, at)) END;
        settled := at;
        settler := pg_snapshot_xmax(seen);
    END IF;
    kind := job_type;
    accepted := asked;
    finished := greatest(clock_timestamp(), asked, last + interval '1 microsecond');
    total := total + CASE job_type WHEN 'deposit' THEN sum ELSE -sum END;
    IF total BETWEEN 0 AND max_balance THEN
        outcome := 'succeeded';
        UPDATE accounts SET balance = total, last_seq = next_seq, last_at = finished,
            done_to = done, settling = settled, settling_xid = settler
        WHERE id = account;
        INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, position, created_at)
        VALUES (account, next_seq, job_type, sum, total, words, job, at, finished);
    ELSE
        outcome := 'rejected';
        INSERT INTO rejections (account_id, position, job_id, finished_at, failure)
        VALUES (account, at, job, finished, CASE WHEN total < 0 THEN 'insufficient_funds' ELSE 'balance_limit_exceeded' END);
        UPDATE accounts SET done_to = done, settling = settled, settling_xid = settler WHERE id = account;
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
