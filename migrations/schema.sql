-- The schema as it is after all migrations, to read. make schema writes it with pg_dump;
-- nothing runs it. The reasons stand in the migrations, beside what they create.

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

CREATE FUNCTION public.accept_jobs(ids uuid[], users uuid[], numbers text[], keys text[], locks bigint[], types public.entry_type[], amounts bigint[], descriptions text[], firsts bigint[], capacities bigint[], max_queued bigint) RETURNS TABLE(id uuid, account bigint, currency text, opened boolean, busy boolean, capacity bigint, at bigint, accepted timestamp with time zone)
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

    FOR n, account, currency, opened, capacity IN
        SELECT request.n, owned.id, owned.currency,
            EXISTS (SELECT FROM accounts WHERE user_id = users[request.n] AND open_key = keys[request.n]),
            CASE WHEN request.n = request.first THEN coalesce(capacities[request.n], max_queued - (
                SELECT count(*)
                FROM (SELECT FROM jobs WHERE account_id = owned.id AND status = 'queued' AND position > owned.done_to LIMIT max_queued) queued
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
        IF NOT opened AND NOT busy AND remaining[firsts[n]] > 0 THEN
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
        RETURNING job.id, job.account_id, '', false, false, 0::bigint, job.position, job.created_at;
END
$$;

CREATE FUNCTION public.apply_job(ticket uuid, max_balance bigint, count_to bigint, flush boolean DEFAULT true, OUT job uuid, OUT kind public.entry_type, OUT outcome public.job_status, OUT accepted timestamp with time zone, OUT finished timestamp with time zone, OUT behind bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
DECLARE
    account  bigint;
    up_to    bigint;      -- the ticket's position
    state    job_status;  -- of the ticket's job
    total    bigint;      -- the balance, and then what it would become
    next_seq bigint;
    last     timestamptz; -- what the next transaction is later than
    sum      bigint;
    words    text;
    done     bigint;      -- where the search begins
    at       bigint;      -- the job's position
    settled  bigint;      -- what becomes done_to, once
    settler  xid8;        -- all below this have ended
    seen     pg_snapshot; -- of the search
BEGIN
    IF current_setting('transaction_read_only') = 'on' THEN -- a standby, which may not know all yet
        RAISE EXCEPTION 'apply_job can do nothing here' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    SELECT account_id, position, status INTO account, up_to, state FROM jobs WHERE id = ticket;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF state <> 'queued' THEN -- all may be done: no lock to wait for, nothing to flush
        SELECT done_to INTO done FROM accounts WHERE id = account;
        PERFORM FROM jobs WHERE account_id = account AND status = 'queued' AND position > coalesce(done, 0) AND position <= up_to LIMIT 1;
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
    SELECT id, position, type, amount, description, created_at, pg_current_snapshot() INTO job, at, kind, sum, words, accepted, seen
    FROM jobs
    WHERE account_id = account AND status = 'queued' AND position > done AND position <= up_to
    ORDER BY position
    LIMIT 1;
    IF NOT FOUND THEN
        behind := 0;
        RETURN;
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
    finished := greatest(clock_timestamp(), accepted, last + interval '1 microsecond');
    total := total + CASE kind WHEN 'deposit' THEN sum ELSE -sum END;
    IF total BETWEEN 0 AND max_balance THEN
        outcome := 'succeeded';
        UPDATE jobs SET status = 'succeeded', seq = next_seq, balance_after = total, finished_at = finished WHERE id = job;
        UPDATE accounts SET balance = total, last_seq = next_seq, last_at = finished,
            done_to = done, settling = settled, settling_xid = settler
        WHERE id = account;
        INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, created_at)
        VALUES (account, next_seq, kind, sum, total, words, job, finished);
    ELSE
        outcome := 'rejected';
        UPDATE jobs SET status = 'rejected', finished_at = finished,
            failure = CASE WHEN total < 0 THEN 'insufficient_funds' ELSE 'balance_limit_exceeded' END
        WHERE id = job;
        UPDATE accounts SET done_to = done, settling = settled, settling_xid = settler WHERE id = account;
    END IF;

    IF job = ticket THEN
        behind := 0;
    ELSIF count_to > 0 THEN
        SELECT count(*) INTO behind
        FROM (SELECT FROM jobs WHERE account_id = account AND status = 'queued' AND position > at AND position <= up_to LIMIT count_to) line;
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
        type, status, attempts, idempotency_key, description, failure)
    SELECT id, position, account_id, user_id, amount, created_at, finished_at, seq, balance_after,
        type, status, attempts, idempotency_key, description, failure
    FROM jobs WHERE id = ANY (ids);
    DELETE FROM jobs WHERE id = ANY (ids); -- jobs_leave_archived looks whether each stands in the archive
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
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

CREATE FUNCTION public.deposit_initial(account bigint, sum bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.hold_balance() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT (NEW.last_seq OPERATOR(pg_catalog.=) (OLD.last_seq OPERATOR(pg_catalog.+) 1) AND NEW.last_at OPERATOR(pg_catalog.>) OLD.last_at
         OR NEW.last_seq OPERATOR(pg_catalog.=) OLD.last_seq AND NEW.balance OPERATOR(pg_catalog.=) OLD.balance
            AND NEW.last_at OPERATOR(pg_catalog.=) OLD.last_at) THEN
        RAISE EXCEPTION '% on %: a balance moves only with its history', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION public.hold_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.hold_new_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.hold_transaction() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.lower_done_to() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'public', 'pg_temp'
    AS $$
BEGIN
    UPDATE accounts SET done_to = least(done_to, NEW.position - 1) WHERE id = NEW.account_id;
    RETURN NULL;
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
    settling_xid xid8
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
    finished_at timestamp with time zone,
    seq bigint,
    balance_after public.balance,
    type public.entry_type NOT NULL,
    status public.job_status NOT NULL,
    attempts smallint NOT NULL,
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    description text,
    failure text,
    CONSTRAINT archived_jobs_status_check CHECK ((status = ANY (ARRAY['succeeded'::public.job_status, 'rejected'::public.job_status])))
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
    finished_at timestamp with time zone,
    seq bigint,
    balance_after public.balance,
    type public.entry_type NOT NULL,
    status public.job_status DEFAULT 'queued'::public.job_status NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL,
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    description text,
    failure text
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

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

CREATE TABLE public.transactions (
    account_id bigint NOT NULL,
    seq bigint NOT NULL,
    amount public.amount NOT NULL,
    balance_after public.balance NOT NULL,
    created_at timestamp with time zone NOT NULL,
    job_id uuid,
    type public.entry_type NOT NULL,
    description text
)
WITH (autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');

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

ALTER TABLE ONLY public.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (one_row);

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_pkey PRIMARY KEY (account_id, seq);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE UNIQUE INDEX accounts_number ON public.accounts USING btree (number);

CREATE UNIQUE INDEX accounts_open_key ON public.accounts USING btree (user_id, open_key) WHERE (open_key IS NOT NULL);

CREATE INDEX accounts_user ON public.accounts USING btree (user_id, id);

CREATE UNIQUE INDEX archived_jobs_ended ON public.archived_jobs USING btree (account_id, status, "position");

CREATE UNIQUE INDEX archived_jobs_key ON public.archived_jobs USING btree (user_id, idempotency_key);

CREATE UNIQUE INDEX jobs_ended ON public.jobs USING btree (account_id, status, "position") WHERE (status <> 'queued'::public.job_status);

CREATE INDEX jobs_failed ON public.jobs USING btree ("position") WHERE (status = 'failed'::public.job_status);

CREATE UNIQUE INDEX jobs_key ON public.jobs USING btree (user_id, idempotency_key);

CREATE UNIQUE INDEX jobs_queue ON public.jobs USING btree (account_id, "position") WHERE (status = 'queued'::public.job_status);

CREATE INDEX refresh_tokens_session ON public.refresh_tokens USING btree (session_id, expires_at);

CREATE INDEX sessions_live ON public.sessions USING btree (user_id, created_at) WHERE (revoked_at IS NULL);

CREATE INDEX sessions_user ON public.sessions USING btree (user_id);

CREATE UNIQUE INDEX transactions_deposit_times ON public.transactions USING btree (account_id, created_at) WHERE (type = 'deposit'::public.entry_type);

CREATE UNIQUE INDEX transactions_posting ON public.transactions USING btree (job_id) WHERE (job_id IS NOT NULL);

CREATE UNIQUE INDEX transactions_withdrawal_times ON public.transactions USING btree (account_id, created_at) WHERE (type = 'withdrawal'::public.entry_type);

CREATE UNIQUE INDEX users_email ON public.users USING btree (email_key);

CREATE TRIGGER accounts_are_kept BEFORE DELETE OR TRUNCATE ON public.accounts FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('an account outlives its history');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_are_kept;

CREATE TRIGGER accounts_form BEFORE INSERT ON public.accounts FOR EACH ROW WHEN ((NOT (((length(new.number) >= 4) AND (length(new.number) <= 34)) AND (new.number !~ '[^A-Za-z0-9-]'::text) AND (new.currency ~ '^[A-Z]{3}$'::text) AND ((new.open_key IS NULL) = (new.open_request IS NULL))))) EXECUTE FUNCTION public.refuse('a number is of 4 to 34 letters, digits and hyphens, a currency of three letters; a key stands with its request');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_form;

CREATE TRIGGER accounts_move BEFORE UPDATE ON public.accounts FOR EACH ROW EXECUTE FUNCTION public.hold_balance();

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_move;

CREATE TRIGGER accounts_start_empty BEFORE INSERT ON public.accounts FOR EACH ROW WHEN ((((new.balance)::bigint <> 0) OR (new.last_seq <> 0))) EXECUTE FUNCTION public.refuse('a balance moves only with its history');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_start_empty;

CREATE TRIGGER accounts_terms BEFORE UPDATE OF number, currency, user_id, created_at, open_key, open_request ON public.accounts FOR EACH ROW WHEN (((((((new.number IS DISTINCT FROM old.number) OR (new.currency IS DISTINCT FROM old.currency)) OR (new.user_id IS DISTINCT FROM old.user_id)) OR (new.created_at IS DISTINCT FROM old.created_at)) OR (new.open_key IS DISTINCT FROM old.open_key)) OR (new.open_request IS DISTINCT FROM old.open_request))) EXECUTE FUNCTION public.refuse('an account keeps its terms');

ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER accounts_terms;

CREATE TRIGGER archived_jobs_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.archived_jobs FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a key is an answer for good');

ALTER TABLE public.archived_jobs ENABLE ALWAYS TRIGGER archived_jobs_append_only;

CREATE TRIGGER jobs_are_kept BEFORE TRUNCATE ON public.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('a key is an answer for good');

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_are_kept;

CREATE TRIGGER jobs_form BEFORE INSERT ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.hold_new_job();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_form;

CREATE TRIGGER jobs_leave_archived BEFORE DELETE ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.refuse_unless_archived();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_leave_archived;

CREATE TRIGGER jobs_replayed AFTER UPDATE OF failure ON public.jobs FOR EACH ROW WHEN (((new.status = 'queued'::public.job_status) AND (old.status = 'failed'::public.job_status))) EXECUTE FUNCTION public.lower_done_to();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_replayed;

CREATE TRIGGER jobs_skip_archived BEFORE INSERT ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.skip_archived();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_skip_archived;

CREATE TRIGGER jobs_states BEFORE UPDATE ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.hold_job();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_states;

CREATE TRIGGER jobs_take_transaction_id BEFORE INSERT ON public.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.take_transaction_id();

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_take_transaction_id;

CREATE TRIGGER jobs_terms BEFORE UPDATE OF id, "position", account_id, user_id, amount, created_at, type, idempotency_key, description ON public.jobs FOR EACH ROW WHEN ((((((((((new.id IS DISTINCT FROM old.id) OR (new."position" IS DISTINCT FROM old."position")) OR (new.account_id IS DISTINCT FROM old.account_id)) OR (new.user_id IS DISTINCT FROM old.user_id)) OR ((new.amount)::bigint IS DISTINCT FROM (old.amount)::bigint)) OR (new.created_at IS DISTINCT FROM old.created_at)) OR (new.type IS DISTINCT FROM old.type)) OR (new.idempotency_key IS DISTINCT FROM old.idempotency_key)) OR (new.description IS DISTINCT FROM old.description))) EXECUTE FUNCTION public.refuse('what was asked never changes');

ALTER TABLE public.jobs ENABLE ALWAYS TRIGGER jobs_terms;

CREATE TRIGGER transactions_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.transactions FOR EACH STATEMENT EXECUTE FUNCTION public.refuse('history is append-only');

ALTER TABLE public.transactions ENABLE ALWAYS TRIGGER transactions_append_only;

CREATE TRIGGER transactions_rules BEFORE INSERT ON public.transactions FOR EACH ROW EXECUTE FUNCTION public.hold_transaction();

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

ALTER TABLE public.jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY jobs_accept ON public.jobs FOR INSERT WITH CHECK (true);

CREATE POLICY jobs_fail ON public.jobs FOR UPDATE USING (true) WITH CHECK ((status <> 'succeeded'::public.job_status));

CREATE POLICY jobs_read ON public.jobs FOR SELECT USING (true);

ALTER TABLE public.transactions ENABLE ROW LEVEL SECURITY;

CREATE POLICY transactions_read ON public.transactions FOR SELECT USING (true);

REVOKE ALL ON FUNCTION public.apply_job(ticket uuid, max_balance bigint, count_to bigint, flush boolean, OUT job uuid, OUT kind public.entry_type, OUT outcome public.job_status, OUT accepted timestamp with time zone, OUT finished timestamp with time zone, OUT behind bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.archive_jobs(ids uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.close_history(owner uuid, account_number text, until timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.deposit_initial(account bigint, sum bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION public.lower_done_to() FROM PUBLIC;
