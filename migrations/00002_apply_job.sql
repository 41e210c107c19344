-- +goose Up

-- What an apply does, in steps whose plans Postgres keeps: it goes through some small ones
-- sooner than through a single one for all (internal/bench/EXPERIMENTS.md).
--
-- apply_job applies the oldest queued job of the ticket's account, if that is the
-- ticket's or an older one: it locks the account, decides, finishes the job, moves the
-- balance and writes the history. All times come from Postgres's clock; created_at never
-- goes back within an account, nor to a time for which a balance was answered, even where
-- that clock does.
--
-- The account's lock holds every other apply of it off until the transaction ends; NO
-- KEY, so nothing that only refers to the account has to wait. Under READ COMMITTED each
-- statement sees what was committed before it began. So what stands behind the lock sees
-- all that any apply of the account has done, and a job that is queued then stays so: only
-- who has the lock changes it. A job that is not seen is none that must come before one
-- that is: that was committed before the other was sent.
--
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
--
-- It answers with the job, and with how many jobs are queued behind it then, up to the
-- ticket's: 0 where it was the ticket's own; else counted as far as count_to, and null
-- where that is 0. Where no job up to the ticket's was queued, it answers with no job and 0
-- behind, and where the ticket's is unknown with nulls alone.
--
-- It runs as the tables' owner, for roles that were granted it, and in the schema of jobs
-- whatever the session's search_path: 00001_schema.sql.
--
-- Where flush is false its commit need not wait until it is flushed: a later transaction of
-- the batch flushes for it (internal/ledger/apply.go).
-- +goose StatementBegin
CREATE FUNCTION apply_job(ticket uuid, max_balance bigint, count_to bigint, flush boolean DEFAULT true,
    OUT job uuid, OUT kind entry_type, OUT outcome job_status, OUT accepted timestamptz, OUT finished timestamptz, OUT behind bigint)
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    account  bigint;
    up_to    bigint;      -- the ticket's position
    state    job_status;  -- of the ticket's job
    total    bigint;      -- the balance, and then what it would become
    next_seq bigint;
    last     timestamptz; -- what the next transaction is later than
    sum      bigint;
    words    text;
BEGIN
    IF current_setting('transaction_read_only') = 'on' THEN -- a standby, which may not know all yet
        RAISE EXCEPTION 'apply_job can do nothing here' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    SELECT account_id, position, status INTO account, up_to, state FROM jobs WHERE id = ticket;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF state <> 'queued' THEN -- all may be done: no lock to wait for, nothing to flush
        PERFORM FROM jobs WHERE account_id = account AND status = 'queued' AND position <= up_to LIMIT 1;
        IF NOT FOUND THEN
            behind := 0;
            RETURN;
        END IF;
    END IF;
    SELECT balance, last_seq + 1, greatest(last_at, answered_until) INTO total, next_seq, last FROM accounts WHERE id = account FOR NO KEY UPDATE;
    IF NOT FOUND THEN -- as a bad restore may leave it
        RAISE EXCEPTION 'account % is not there', account USING ERRCODE = 'foreign_key_violation';
    END IF;
    SELECT id, type, amount, description, created_at INTO job, kind, sum, words, accepted
    FROM jobs
    WHERE account_id = account AND status = 'queued' AND position <= up_to
    ORDER BY position
    LIMIT 1;
    IF NOT FOUND THEN
        behind := 0;
        RETURN;
    END IF;

    IF NOT flush THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    finished := greatest(clock_timestamp(), accepted, last + interval '1 microsecond');
    total := total + CASE kind WHEN 'deposit' THEN sum ELSE -sum END;
    IF total BETWEEN 0 AND max_balance THEN
        outcome := 'succeeded';
        UPDATE jobs SET status = 'succeeded', seq = next_seq, balance_after = total, finished_at = finished WHERE id = job;
        UPDATE accounts SET balance = total, last_seq = next_seq, last_at = finished WHERE id = account;
        INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, created_at)
        VALUES (account, next_seq, kind, sum, total, words, job, finished);
    ELSE
        outcome := 'rejected';
        UPDATE jobs SET status = 'rejected', finished_at = finished,
            failure = CASE WHEN total < 0 THEN 'insufficient_funds' ELSE 'balance_limit_exceeded' END
        WHERE id = job;
    END IF;

    IF job = ticket THEN
        behind := 0;
    ELSIF count_to > 0 THEN
        SELECT count(*) INTO behind
        FROM (SELECT FROM jobs WHERE account_id = account AND status = 'queued' AND position <= up_to LIMIT count_to) line;
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
