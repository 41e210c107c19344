-- +goose Up

-- The migrations before this one were rewritten before the first release. A database that has
-- the old ones has no table operator_actions.
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regclass('operator_actions') IS NULL THEN
        RAISE EXCEPTION 'this database is older than the first release of Passbook: start with an empty one';
    END IF;
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
-- job. fresh and reused: the numbers, from 1, of the requests whose keys are new, and of those
-- whose keys were used for something else. The keys of the other requests have made the same jobs
-- before. Where no key was reused, the account is not closed, and it has the capacity for the
-- fresh requests, accept_batch inserts their jobs; positions are theirs, and ascend.
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
BEGIN
    EXECUTE format('ALTER FUNCTION accept_batch SET search_path = pg_catalog, %s, pg_temp',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass));
END
$$;
-- +goose StatementEnd
