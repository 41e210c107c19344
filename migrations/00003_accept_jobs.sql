-- +goose Up

-- What an accept does, in small statements whose plans Postgres keeps. A single statement for the
-- whole accept took longer to set up than to run (internal/bench/EXPERIMENTS.md).
--
-- accept_jobs checks the ownership, the key and the queue capacity of each request, and inserts
-- the jobs of the requests that pass. The requests are parallel arrays, sorted by user and key:
-- two calls that share keys insert them in the same order, so they can't deadlock. firsts gives
-- for each request the number, from 1, of the first request with the same user and account
-- number. capacities gives for that first request how many more queued jobs the account may
-- have. Where it is null, accept_jobs counts the queued jobs; an account may have max_queued.
--
-- It returns a row for each request whose account is the user's: opened where the key has opened
-- an account, busy where another transaction holds the key's lock, closed where the account is, and
-- for the account's first request the capacity before this call. It returns a second row, with a
-- position, for each job that it inserted. A request without a second row that is not opened, busy
-- or closed, and within the capacity, has met its key in jobs or in the archive.
--
-- A closed account takes no new job. Where the close commits after accept_jobs has looked, the job
-- is accepted, and its apply rejects it.
--
-- The locks keep the keys from opening an account meanwhile, and their jobs from moving to the
-- archive: a key names one thing, and no constraint spans the tables. accept_jobs does not wait
-- for a lock, or one key would delay its whole batch. Under READ COMMITTED each statement has a
-- snapshot of its own, so the checks see what was committed before the locks were granted.
--
-- It runs with its caller's rights: those of a serving role suffice (deploy/postgres/roles.sql).
-- +goose StatementBegin
CREATE FUNCTION accept_jobs(ids uuid[], users uuid[], numbers text[], keys text[], locks bigint[], types entry_type[], amounts bigint[],
    descriptions text[], firsts bigint[], capacities bigint[], max_queued bigint)
RETURNS TABLE (id uuid, account bigint, currency text, opened boolean, busy boolean, closed boolean, capacity bigint, at bigint, accepted timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    n         bigint;    -- of a request
    locked    boolean[];
    remaining bigint[];  -- capacity, by the account's first request
    passed    bigint[];  -- the account of each request that passes
BEGIN
    FOR i IN 1..cardinality(locks) LOOP
        locked[i] := pg_try_advisory_xact_lock_shared(locks[i]);
    END LOOP;

    FOR n, account, currency, closed, opened, capacity IN
        SELECT request.n, owned.id, owned.currency, owned.status = 'closed',
            EXISTS (SELECT FROM accounts WHERE user_id = users[request.n] AND open_key = keys[request.n]),
            CASE WHEN request.n = request.first THEN coalesce(capacities[request.n], max_queued - (
                SELECT count(*)
                FROM (SELECT FROM queue WHERE account_id = owned.id AND position > owned.done_to LIMIT max_queued) queued
            )) END
        FROM unnest(firsts) WITH ORDINALITY request (first, n)
        JOIN accounts owned ON owned.number = numbers[request.n] AND owned.user_id = users[request.n]
        ORDER BY request.n
    LOOP
        id := ids[n];
        busy := NOT locked[n];
        IF n = firsts[n] THEN
            remaining[n] := capacity;
        END IF;
        IF NOT opened AND NOT busy AND NOT closed AND remaining[firsts[n]] > 0 THEN
            remaining[firsts[n]] := remaining[firsts[n]] - 1;
            passed[n] := account;
        END IF;
        RETURN NEXT;
    END LOOP;

    RETURN QUERY
        INSERT INTO jobs AS job (id, account_id, user_id, idempotency_key, type, amount, description)
        SELECT ids[request.n], passed[request.n], users[request.n], keys[request.n], types[request.n], amounts[request.n], descriptions[request.n]
        FROM unnest(firsts) WITH ORDINALITY request (first, n)
        WHERE passed[request.n] IS NOT NULL
        ORDER BY request.n
        ON CONFLICT (user_id, idempotency_key) DO NOTHING
        RETURNING job.id, job.account_id, '', false, false, false, 0::bigint, job.position, job.created_at;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION accept_jobs SET search_path = pg_catalog, %s, pg_temp',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass));
END
$$;
-- +goose StatementEnd
