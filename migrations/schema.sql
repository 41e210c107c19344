-- The schema as it is after all migrations, to read. make schema writes it with pg_dump;
-- nothing runs it. The reasons stand in the migrations, beside what they create.

CREATE TYPE public.account_status AS ENUM (
    'open',
    'frozen',
    'closed'
);

CREATE DOMAIN public.amount AS bigint
	CONSTRAINT amount_check CHECK (((VALUE >= 1) AND (VALUE <= '9007199254740991'::bigint)));

CREATE DOMAIN public.balance AS bigint
	CONSTRAINT balance_check CHECK (((VALUE >= 0) AND (VALUE <= '9007199254740991'::bigint)));

CREATE TYPE public.entry_type AS ENUM (
    'deposit',
    'withdrawal'
);

CREATE TYPE public.job_status AS ENUM (
    'queued',
    'succeeded',
    'rejected',
    'failed'
);

CREATE TYPE public.operator_action AS ENUM (
    'freeze',
    'unfreeze',
    'close',
    'replay'
);

CREATE FUNCTION public.accept_batch(owner uuid, account_number text, ids uuid[], keys text[], locks bigint[], types public.entry_type[], amounts bigint[], descriptions text[], known_capacity bigint, max_queued bigint) RETURNS TABLE(account bigint, currency text, capacity bigint, busy boolean, closed boolean, fresh bigint[], reused bigint[], positions bigint[], accepted timestamp with time zone)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.accept_jobs(ids uuid[], users uuid[], numbers text[], keys text[], locks bigint[], types public.entry_type[], amounts bigint[], descriptions text[], firsts bigint[], capacities bigint[], max_queued bigint) RETURNS TABLE(id uuid, account bigint, currency text, opened boolean, busy boolean, closed boolean, capacity bigint, at bigint, accepted timestamp with time zone)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.act_for_operator() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.apply_job(up_to_job uuid, max_balance bigint, count_to bigint, flush boolean DEFAULT true, OUT job uuid, OUT account bigint, OUT kind public.entry_type, OUT outcome public.job_status, OUT accepted timestamp with time zone, OUT finished timestamp with time zone, OUT behind bigint, OUT account_number text) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.archive_jobs(ids uuid[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.check_balance() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.check_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF pg_catalog.length(NEW.idempotency_key) OPERATOR(pg_catalog.=) 0 OR pg_catalog.length(NEW.idempotency_key) OPERATOR(pg_catalog.>) 255
        OR NEW.idempotency_key OPERATOR(pg_catalog.~) '[^!-~]' OR pg_catalog.length(NEW.description) OPERATOR(pg_catalog.>) 140 THEN
        RAISE EXCEPTION '% on %: a key is of 1 to 255 visible characters, a description of 140 at most', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION public.check_queue() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.<) 2 THEN
        RAISE EXCEPTION '% on %: a job enters the queue by its accept or replay and leaves it by its outcome', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.check_transaction() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NEW.job_id IS NOT NULL THEN
        DELETE FROM public.queue WHERE account_id OPERATOR(pg_catalog.=) NEW.account_id AND position OPERATOR(pg_catalog.=) NEW.position
            AND job_id OPERATOR(pg_catalog.=) NEW.job_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION '% on %: its job is not queued', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    ELSIF NOT (NEW.position IS NULL AND NEW.seq OPERATOR(pg_catalog.=) 1 AND NEW.type OPERATOR(pg_catalog.=) 'deposit') THEN
        RAISE EXCEPTION '% on %: a transaction has its job, but for an initial deposit', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT (NEW.seq OPERATOR(pg_catalog.>=) 1) THEN
        RAISE EXCEPTION '% on %: a history begins with transaction 1', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- The balance before the transaction can't be negative either.
    IF NOT (NEW.type OPERATOR(pg_catalog.=) 'withdrawal' OR NEW.balance_after OPERATOR(pg_catalog.>=) NEW.amount) THEN
        RAISE EXCEPTION '% on %: no balance was ever negative', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION public.close_history(owner uuid, account_number text, until timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
DECLARE
    answered timestamptz;
BEGIN
    UPDATE accounts SET answered_until = greatest(last_at, answered_until, least(until, clock_timestamp()))
    WHERE user_id = owner AND number = account_number
    RETURNING answered_until INTO answered;
    RETURN answered;
END
$$;

CREATE FUNCTION public.deposit_initial(account bigint, initial_amount bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.enter_queue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO queue (account_id, position, job_id) SELECT account_id, position, id FROM accepted;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.leave_queue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    DELETE FROM queue WHERE account_id = NEW.account_id AND position = NEW.position AND job_id = NEW.job_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% on %: its job is not queued', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION public.refuse() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    RAISE EXCEPTION '% on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END
$$;

CREATE FUNCTION public.refuse_unless_archived() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.refuse_unless_moved() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM jobs WHERE id = OLD.job_id) OR NOT EXISTS (SELECT FROM archived_jobs WHERE id = OLD.job_id) THEN
        RAISE EXCEPTION '% on %: a finished job never changes', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$;

CREATE FUNCTION public.replay_job() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO queue (account_id, position, job_id) VALUES (OLD.account_id, OLD.position, OLD.job_id);
    UPDATE accounts SET done_to = least(done_to, OLD.position - 1) WHERE id = OLD.account_id;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.skip_archived() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM archived_jobs WHERE user_id = NEW.user_id AND idempotency_key = NEW.idempotency_key)
        OR EXISTS (SELECT FROM archived_jobs WHERE id = NEW.id) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION public.stamp_failure() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.take_transaction_id() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    taken CONSTANT xid8 := pg_catalog.pg_current_xact_id();
BEGIN
    RETURN NULL;
END
$$;

CREATE TABLE public.accounts (
    id bigint NOT NULL,
    user_id uuid NOT NULL,
    number text NOT NULL COLLATE pg_catalog."C",
    currency text NOT NULL,
    balance public.balance DEFAULT 0 NOT NULL,
    last_seq bigint DEFAULT 0 NOT NULL,
    last_at timestamp with time zone NOT NULL,
    created_at timestamp with time zone NOT NULL,
    open_key text COLLATE pg_catalog."C",
    open_request bytea,
    answered_until timestamp with time zone,
    done_to bigint DEFAULT 0 NOT NULL,
    settling bigint DEFAULT 0 NOT NULL,
    settling_xid xid8,
    status public.account_status DEFAULT 'open'::public.account_status NOT NULL
)
WITH (fillfactor='75', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

ALTER TABLE public.accounts ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.accounts_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.archived_jobs (
    id uuid NOT NULL,
    "position" bigint NOT NULL,
    account_id bigint NOT NULL,
    user_id uuid NOT NULL,
    amount public.amount NOT NULL,
    created_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    seq bigint,
    balance_after public.balance,
    type public.entry_type NOT NULL,
    status public.job_status NOT NULL,
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    description text,
    failure text,
    CONSTRAINT archived_jobs_status_check CHECK ((status = ANY (ARRAY['succeeded'::public.job_status, 'rejected'::public.job_status])))
);

CREATE TABLE public.failures (
    account_id bigint NOT NULL,
    "position" bigint NOT NULL,
    job_id uuid NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    failure text NOT NULL,
    detail text
);

CREATE TABLE public.installation (
    one_row boolean DEFAULT true NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    CONSTRAINT installation_one_row_check CHECK (one_row)
);

CREATE SEQUENCE public.job_positions
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE public.jobs (
    id uuid NOT NULL,
    "position" bigint DEFAULT nextval('public.job_positions'::regclass) NOT NULL,
    account_id bigint NOT NULL,
    user_id uuid NOT NULL,
    amount public.amount NOT NULL,
    created_at timestamp with time zone DEFAULT statement_timestamp() NOT NULL,
    type public.entry_type NOT NULL,
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    description text
)
WITH (autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');

CREATE TABLE public.queue (
    account_id bigint NOT NULL,
    "position" bigint NOT NULL,
    job_id uuid NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_insert_scale_factor='0.02', autovacuum_vacuum_cost_delay='0', vacuum_truncate='false');

CREATE TABLE public.rejections (
    account_id bigint NOT NULL,
    "position" bigint NOT NULL,
    job_id uuid NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    failure text NOT NULL
)
WITH (autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');

CREATE TABLE public.transactions (
    account_id bigint NOT NULL,
    seq bigint NOT NULL,
    amount public.amount NOT NULL,
    balance_after public.balance NOT NULL,
    created_at timestamp with time zone NOT NULL,
    job_id uuid,
    "position" bigint,
    type public.entry_type NOT NULL,
    description text
)
WITH (autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');

CREATE VIEW public.job_states WITH (security_invoker='true') AS
 SELECT job.id,
    job."position",
    job.account_id,
    job.user_id,
    job.amount,
    job.created_at,
    COALESCE(transaction.created_at, rejection.finished_at, failure.finished_at) AS finished_at,
    transaction.seq,
    transaction.balance_after,
    job.type,
    (
        CASE
            WHEN (transaction.job_id IS NOT NULL) THEN 'succeeded'::text
            WHEN (rejection.job_id IS NOT NULL) THEN 'rejected'::text
            WHEN (failure.job_id IS NOT NULL) THEN 'failed'::text
            ELSE 'queued'::text
        END)::public.job_status AS status,
    job.idempotency_key,
    job.description,
    COALESCE(rejection.failure, failure.failure) AS failure,
    COALESCE((queue.attempts)::integer, (failure.attempts)::integer, 0) AS attempts,
    job.xmin AS accepted_by,
    COALESCE(transaction.xmin, rejection.xmin, failure.xmin) AS finished_by
   FROM ((((public.jobs job
     LEFT JOIN public.transactions transaction ON (((transaction.account_id = job.account_id) AND (transaction."position" = job."position"))))
     LEFT JOIN public.rejections rejection ON (((rejection.account_id = job.account_id) AND (rejection."position" = job."position"))))
     LEFT JOIN public.failures failure ON (((failure.account_id = job.account_id) AND (failure."position" = job."position"))))
     LEFT JOIN public.queue ON (((queue.account_id = job.account_id) AND (queue."position" = job."position"))));

CREATE TABLE public.operator_actions (
    account_id bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    action public.operator_action NOT NULL,
    job_id uuid,
    person text NOT NULL,
    role text NOT NULL,
    reason text NOT NULL,
    CONSTRAINT operator_actions_check CHECK (((action = 'replay'::public.operator_action) = (job_id IS NOT NULL))),
    CONSTRAINT operator_actions_person_check CHECK (((length(person) >= 1) AND (length(person) <= 100))),
    CONSTRAINT operator_actions_reason_check CHECK (((length(reason) >= 1) AND (length(reason) <= 500)))
);

CREATE TABLE public.refresh_tokens (
    hash bytea NOT NULL,
    parent bytea,
    session_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    spent_at timestamp with time zone,
    closed boolean DEFAULT false NOT NULL
);

CREATE TABLE public.sessions (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    revoked_at timestamp with time zone
);

CREATE TABLE public.users (
    id uuid NOT NULL,
    email text NOT NULL,
    email_key text NOT NULL COLLATE pg_catalog."C",
    password_hash text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.archived_jobs
    ADD CONSTRAINT archived_jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.failures
    ADD CONSTRAINT failures_pkey PRIMARY KEY (account_id, "position");

ALTER TABLE ONLY public.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (one_row);

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.operator_actions
    ADD CONSTRAINT operator_actions_pkey PRIMARY KEY (account_id, at);

ALTER TABLE ONLY public.queue
    ADD CONSTRAINT queue_pkey PRIMARY KEY (account_id, "position");

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.rejections
    ADD CONSTRAINT rejections_pkey PRIMARY KEY (account_id, "position");

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_pkey PRIMARY KEY (account_id, seq);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE UNIQUE INDEX accounts_number ON public.accounts USING btree (number);

CREATE UNIQUE INDEX accounts_open_key ON public.accounts USING btree (user_id, open_key) WHERE (open_key IS NOT NULL);

CREATE INDEX accounts_user ON public.accounts USING btree (user_id, id);

CREATE UNIQUE INDEX archived_jobs_key ON public.archived_jobs USING btree (user_id, idempotency_key);

CREATE UNIQUE INDEX archived_jobs_rejected ON public.archived_jobs USING btree (account_id, "position") WHERE (status = 'rejected'::public.job_status);

CREATE INDEX archived_jobs_rejected_times ON public.archived_jobs USING btree (account_id, finished_at) WHERE (status = 'rejected'::public.job_status);

CREATE INDEX failures_times ON public.failures USING btree (account_id, finished_at);

CREATE UNIQUE INDEX jobs_key ON public.jobs USING btree (user_id, idempotency_key);

CREATE INDEX refresh_tokens_session ON public.refresh_tokens USING btree (session_id, expires_at);

CREATE INDEX rejections_times ON public.rejections USING btree (account_id, finished_at);

CREATE INDEX sessions_live ON public.sessions USING btree (user_id, created_at) WHERE (revoked_at IS NULL);

CREATE INDEX sessions_user ON public.sessions USING btree (user_id);

CREATE UNIQUE INDEX transactions_deposit_times ON public.transactions USING btree (account_id, created_at) WHERE (type = 'deposit'::public.entry_type);

CREATE UNIQUE INDEX transactions_jobs ON public.transactions USING btree (account_id, "position") WHERE ("position" IS NOT NULL);

CREATE UNIQUE INDEX transactions_withdrawal_times ON public.transactions USING btree (account_id, created_at) WHERE (type = 'withdrawal'::public.entry_type);

CREATE UNIQUE INDEX users_email ON public.users USING btree (email_key);

CREATE TRIGGER accounts_are_kept BEFORE DELETE OR TRUNCATE ON public.accounts FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('an account outlives its history');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_are_kept;

CREATE TRIGGER accounts_form BEFORE INSERT ON public.accounts FOR EACH ROW WHEN ((NOT (((length(new.number) >= 4) AND (length(new.number) <= 34)) AND (new.number !~ '[^A-Za-z0-9-]'::text) AND (new.currency ~ '^[A-Z]{3}$'::text) AND ((new.open_key IS NULL) = (new.open_request IS NULL))))) EXECUTE FUNCTION public.refuse('a number is of 4 to 34 letters, digits and hyphens, a currency of three letters; a key stands with its request');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_form;

CREATE TRIGGER accounts_move BEFORE UPDATE ON public.accounts FOR EACH ROW EXECUTE FUNCTION public.check_balance();

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_move;

CREATE TRIGGER accounts_start_empty BEFORE INSERT ON public.accounts FOR EACH ROW WHEN ((((new.balance)::bigint <> 0) OR (new.last_seq <> 0) OR (new.status <> 'open'::public.account_status))) EXECUTE FUNCTION public.refuse('an account begins open, and its balance moves only with its history');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_start_empty;

CREATE TRIGGER accounts_status BEFORE UPDATE OF status ON public.accounts FOR EACH ROW WHEN (((new.status IS DISTINCT FROM old.status) AND (pg_trigger_depth() = 0))) EXECUTE FUNCTION public.refuse('a status changes by an operator''s action');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_status;

CREATE TRIGGER accounts_terms BEFORE UPDATE OF number, currency, user_id, created_at, open_key, open_request ON public.accounts FOR EACH ROW WHEN (((((((new.number IS DISTINCT FROM old.number) OR (new.currency IS DISTINCT FROM old.currency)) OR (new.user_id IS DISTINCT FROM old.user_id)) OR (new.created_at IS DISTINCT FROM old.created_at)) OR (new.open_key IS DISTINCT FROM old.open_key)) OR (new.open_request IS DISTINCT FROM old.open_request))) EXECUTE FUNCTION public.refuse('an account keeps its terms');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_terms;

CREATE TRIGGER archived_jobs_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.archived_jobs FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a key is an answer for good');

ALTER TABLE public.archived_jobs ENABLE ALWAYS TRIGGER archived_jobs_append_only;

CREATE TRIGGER failures_are_kept BEFORE UPDATE OR TRUNCATE ON public.failures FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a failed job changes by its replay');

ALTER TABLE public.failures ENABLE ALWAYS TRIGGER failures_are_kept;

CREATE TRIGGER failures_leave_queue BEFORE INSERT ON public.failures FOR EACH ROW EXECUTE FUNCTION public.leave_queue();

ALTER TABLE public.failures ENABLE ALWAYS TRIGGER failures_leave_queue;

CREATE TRIGGER failures_replay AFTER DELETE ON public.failures FOR EACH ROW EXECUTE FUNCTION public.replay_job();

ALTER TABLE public.failures ENABLE ALWAYS TRIGGER failures_replay;

CREATE TRIGGER failures_stamp BEFORE INSERT ON public.failures FOR EACH ROW EXECUTE FUNCTION public.stamp_failure();

ALTER TABLE public.failures ENABLE ALWAYS TRIGGER failures_stamp;

CREATE TRIGGER failures_stay BEFORE DELETE ON public.failures FOR EACH STATEMENT WHEN ((pg_trigger_depth() = 0)) EXECUTE FUNCTION public.refuse('a failed job is replayed by an operator''s action');

ALTER TABLE public.failures ENABLE ALWAYS TRIGGER failures_stay;

CREATE TRIGGER jobs_are_kept BEFORE TRUNCATE ON public.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a key is an answer for good');

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_are_kept;

CREATE TRIGGER jobs_enter_queue AFTER INSERT ON public.jobs REFERENCING NEW TABLE AS accepted FOR EACH STATEMENT EXECUTE FUNCTION public.enter_queue();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_enter_queue;

CREATE TRIGGER jobs_form BEFORE INSERT ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.check_job();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_form;

CREATE TRIGGER jobs_leave_archived BEFORE DELETE ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.refuse_unless_archived();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_leave_archived;

CREATE TRIGGER jobs_skip_archived BEFORE INSERT ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.skip_archived();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_skip_archived;

CREATE TRIGGER jobs_take_transaction_id BEFORE INSERT ON public.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.take_transaction_id();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_take_transaction_id;

CREATE TRIGGER jobs_terms BEFORE UPDATE ON public.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('what was asked never changes');

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_terms;

CREATE TRIGGER operator_actions_act BEFORE INSERT ON public.operator_actions FOR EACH ROW EXECUTE FUNCTION public.act_for_operator();

ALTER TABLE public.operator_actions ENABLE ALWAYS TRIGGER operator_actions_act;

CREATE TRIGGER operator_actions_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.operator_actions FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('what an operator has done stays written');

ALTER TABLE public.operator_actions ENABLE ALWAYS TRIGGER operator_actions_append_only;

CREATE TRIGGER queue_attempts BEFORE UPDATE OF attempts ON public.queue FOR EACH ROW WHEN ((NOT (new.attempts >= 0))) EXECUTE FUNCTION public.refuse('attempts are counted from 0');

ALTER TABLE public.queue ENABLE ALWAYS TRIGGER queue_attempts;

CREATE TRIGGER queue_is_kept BEFORE TRUNCATE ON public.queue FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a job leaves the queue by its outcome');

ALTER TABLE public.queue ENABLE ALWAYS TRIGGER queue_is_kept;

CREATE TRIGGER queue_rows BEFORE INSERT OR DELETE ON public.queue FOR EACH STATEMENT EXECUTE FUNCTION public.check_queue();

ALTER TABLE public.queue ENABLE ALWAYS TRIGGER queue_rows;

CREATE TRIGGER queue_terms BEFORE UPDATE OF account_id, "position", job_id ON public.queue FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('what was asked never changes');

ALTER TABLE public.queue ENABLE ALWAYS TRIGGER queue_terms;

CREATE TRIGGER rejections_are_kept BEFORE UPDATE OR TRUNCATE ON public.rejections FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a finished job never changes');

ALTER TABLE public.rejections ENABLE ALWAYS TRIGGER rejections_are_kept;

CREATE TRIGGER rejections_leave_archived BEFORE DELETE ON public.rejections FOR EACH ROW EXECUTE FUNCTION public.refuse_unless_moved();

ALTER TABLE public.rejections ENABLE ALWAYS TRIGGER rejections_leave_archived;

CREATE TRIGGER rejections_leave_queue BEFORE INSERT ON public.rejections FOR EACH ROW EXECUTE FUNCTION public.leave_queue();

ALTER TABLE public.rejections ENABLE ALWAYS TRIGGER rejections_leave_queue;

CREATE TRIGGER transactions_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.transactions FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('history is append-only');

ALTER TABLE public.transactions ENABLE ALWAYS TRIGGER transactions_append_only;

CREATE TRIGGER transactions_rules BEFORE INSERT ON public.transactions FOR EACH ROW EXECUTE FUNCTION public.check_transaction();

ALTER TABLE public.transactions ENABLE ALWAYS TRIGGER transactions_rules;

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE public.accounts ENABLE ROW LEVEL SECURITY;

CREATE POLICY accounts_lock ON public.accounts FOR UPDATE USING (true) WITH CHECK (false);

CREATE POLICY accounts_open ON public.accounts FOR INSERT WITH CHECK (true);

CREATE POLICY accounts_read ON public.accounts FOR SELECT USING (true);

ALTER TABLE public.archived_jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY archived_jobs_read ON public.archived_jobs FOR SELECT USING (true);

ALTER TABLE public.failures ENABLE ROW LEVEL SECURITY;

CREATE POLICY failures_fail ON public.failures FOR INSERT WITH CHECK (true);

CREATE POLICY failures_read ON public.failures FOR SELECT USING (true);

ALTER TABLE public.jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY jobs_accept ON public.jobs FOR INSERT WITH CHECK (true);

CREATE POLICY jobs_read ON public.jobs FOR SELECT USING (true);

ALTER TABLE public.operator_actions ENABLE ROW LEVEL SECURITY;

CREATE POLICY operator_actions_act ON public.operator_actions FOR INSERT WITH CHECK (true);

CREATE POLICY operator_actions_read ON public.operator_actions FOR SELECT USING (true);

ALTER TABLE public.queue ENABLE ROW LEVEL SECURITY;

CREATE POLICY queue_count ON public.queue FOR UPDATE USING (true);

CREATE POLICY queue_read ON public.queue FOR SELECT USING (true);

ALTER TABLE public.rejections ENABLE ROW LEVEL SECURITY;

CREATE POLICY rejections_read ON public.rejections FOR SELECT USING (true);

ALTER TABLE public.transactions ENABLE ROW LEVEL SECURITY;

CREATE POLICY transactions_read ON public.transactions FOR SELECT USING (true);

REVOKE ALL ON FUNCTION public.act_for_operator() FROM PUBLIC;

REVOKE ALL ON FUNCTION public.apply_job(up_to_job uuid, max_balance bigint, count_to bigint, flush boolean, OUT job uuid, OUT account bigint, OUT kind public.entry_type, OUT outcome public.job_status, OUT accepted timestamp with time zone, OUT finished timestamp with time zone, OUT behind bigint, OUT account_number text) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.archive_jobs(ids uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.close_history(owner uuid, account_number text, until timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.deposit_initial(account bigint, initial_amount bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.enter_queue() FROM PUBLIC;

REVOKE ALL ON FUNCTION public.leave_queue() FROM PUBLIC;

REVOKE ALL ON FUNCTION public.replay_job() FROM PUBLIC;

REVOKE ALL ON FUNCTION public.stamp_failure() FROM PUBLIC;
