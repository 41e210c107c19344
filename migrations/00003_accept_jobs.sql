-- +goose Up

-- The migrations before this one were rewritten before the first release. A database that has
-- the old ones has no table queue.
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regclass('queue') IS NULL THEN
        RAISE EXCEPTION 'this database is older than the first release of Passbook: start with an empty one';
    END IF;
END
$$;
-- +goose StatementEnd

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
-- an account, busy where another transaction holds the key's lock, closed where the account is, and for
-- the account's first request the capacity before this call. It returns a second row, with a position, for each job
-- that it inserted. A request without a second row that is not opened, busy or closed, and within the
-- capacity, has met its key in jobs or in the archive.
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

-- accept_batch accepts the jobs of a client's batch for one account of a user: all of them, or none.
-- The requests are parallel arrays in the order in which the jobs take effect; their keys differ.
-- known_capacity is how many more queued jobs the account may have. Where it is null, accept_batch
-- counts the queued jobs; an account may have max_queued.
--
-- It returns no row where the account is not the user's, and otherwise one. busy: another
-- transaction holds the lock of a key, and no key was looked at. closed: the account takes no new
-- job. fresh and reused: the numbers,
-- from 1, of the requests whose keys are new, and of those whose keys were used for something
-- else. The keys of the other requests have made the same jobs before. Where no key was reused and
-- the account is not closed and has the capacity for the fresh requests, accept_batch inserts their jobs;
-- positions are theirs, and ascend.
--
-- It takes the locks of its keys exclusively: until it ends, no other transaction inserts or archives
-- a job with one of them. So what it reads of the keys stays true, and its insert waits for no other
-- transaction. It can insert in the given order, where accept_jobs must insert in the order of
-- the keys. It takes the locks in their order: of the batches that want a lock at the same time, one
-- gets all of its locks. accept_batch does not wait for a lock: a batch that waits would hold a
-- connection that other accepts need. It runs with its caller's rights.
-- +goose StatementBegin
CREATE FUNCTION accept_batch(owner uuid, account_number text, ids uuid[], keys text[], locks bigint[], types entry_type[], amounts bigint[],
    descriptions text[], known_capacity bigint, max_queued bigint)
RETURNS TABLE (account bigint, currency text, capacity bigint, busy boolean, closed boolean, fresh bigint[], reused bigint[], positions bigint[], accepted timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    key_lock bigint;
BEGIN
    SELECT owned.id, owned.currency, owned.status = 'closed', coalesce(known_capacity, max_queued - (
        SELECT count(*)
        FROM (SELECT FROM queue WHERE account_id = owned.id AND position > owned.done_to LIMIT max_queued) queued
    ))
    INTO account, currency, closed, capacity
    FROM accounts owned WHERE owned.number = account_number AND owned.user_id = owner;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    busy := false;
    FOR key_lock IN SELECT unnest(locks) ORDER BY 1 LOOP
        busy := NOT pg_try_advisory_xact_lock(key_lock);
        EXIT WHEN busy;
    END LOOP;
    IF busy THEN
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(request.n ORDER BY request.n) FILTER (WHERE earlier.same IS NULL),
        array_agg(request.n ORDER BY request.n) FILTER (WHERE NOT earlier.same)
    INTO fresh, reused
    FROM unnest(keys) WITH ORDINALITY request (key, n)
    LEFT JOIN LATERAL (
        SELECT (job.account_id, job.type, job.amount, job.description)
            IS NOT DISTINCT FROM (account, types[request.n], amounts[request.n], descriptions[request.n]) AS same
        FROM (
            SELECT account_id, type, amount, description FROM jobs WHERE user_id = owner AND idempotency_key = request.key UNION ALL
            SELECT account_id, type, amount, description FROM archived_jobs WHERE user_id = owner AND idempotency_key = request.key
        ) job
        UNION ALL
        SELECT false FROM accounts WHERE user_id = owner AND open_key = request.key
    ) earlier ON true;

    IF fresh IS NOT NULL AND reused IS NULL AND NOT closed AND cardinality(fresh) <= capacity THEN
        WITH inserted AS (
            INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount, description)
            SELECT ids[request.n], account, owner, keys[request.n], types[request.n], amounts[request.n], descriptions[request.n]
            FROM unnest(fresh) request (n)
            ORDER BY request.n
            RETURNING position, created_at
        )
        SELECT array_agg(position ORDER BY position), max(created_at) INTO positions, accepted FROM inserted;
        IF cardinality(positions) IS DISTINCT FROM cardinality(fresh) THEN -- jobs_skip_archived dropped one
            RAISE EXCEPTION 'a batch is accepted as a whole' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
DECLARE
    ours     text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass);
    function regproc;
BEGIN
    FOREACH function IN ARRAY ARRAY['accept_batch', 'accept_jobs']::regproc[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %s, pg_temp', function, ours);
    END LOOP;
END
$$;
-- +goose StatementEnd
