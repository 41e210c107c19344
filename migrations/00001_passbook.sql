-- +goose Up

-- Who may log in.

CREATE TABLE users (
    id            uuid        PRIMARY KEY,
    email         text        NOT NULL,
    password_hash text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (lower(email));

CREATE TABLE sessions (
    id         uuid        PRIMARY KEY,
    user_id    uuid        NOT NULL REFERENCES users,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
CREATE INDEX sessions_user ON sessions (user_id);

CREATE TABLE refresh_tokens (
    hash       bytea       PRIMARY KEY,
    session_id uuid        NOT NULL REFERENCES sessions,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    spent_at   timestamptz
);

-- The ledger. Amounts are minor units of the account's currency; the largest
-- one, 2^53-1, is what a JSON number holds exactly.

CREATE DOMAIN amount  AS bigint CHECK (VALUE BETWEEN 1 AND 9007199254740991);
CREATE DOMAIN balance AS bigint CHECK (VALUE BETWEEN 0 AND 9007199254740991);
CREATE TYPE entry_type AS ENUM ('deposit', 'withdrawal');

-- The balance is the hot row: every job of the account updates it. No index
-- holds a column that changes, and a quarter of each page stays free, so the
-- new version lands on the same page and the old one is pruned without vacuum.
CREATE TABLE accounts (
    id            bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    user_id       uuid        NOT NULL REFERENCES users,
    number        text        NOT NULL COLLATE "C" CHECK (number ~ '^[A-Za-z0-9-]{4,34}$'),
    currency      text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    balance       balance     NOT NULL DEFAULT 0,
    last_seq      bigint      NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    last_at       timestamptz NOT NULL,            -- of the last transaction; the opening, before there is one
    created_at    timestamptz NOT NULL,
    open_key      text        COLLATE "C",         -- the Idempotency-Key of the opening, where it had one,
    open_request  bytea,                           -- and the hash of what was asked with it
    CHECK ((open_key IS NULL) = (open_request IS NULL))
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX accounts_number ON accounts (number);
CREATE UNIQUE INDEX accounts_open_key ON accounts (user_id, open_key) WHERE open_key IS NOT NULL;
CREATE INDEX accounts_user ON accounts (user_id, id);

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
    attempts        smallint    NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    idempotency_key text        NOT NULL COLLATE "C" CHECK (idempotency_key ~ '^[!-~]{1,255}$'),
    description     text        CHECK (length(description) <= 140),
    failure         text,                          -- why it was rejected or failed: the code
    CHECK ((status = 'queued') = (finished_at IS NULL)),
    CHECK ((status = 'succeeded') = (seq IS NOT NULL AND balance_after IS NOT NULL)),
    CHECK ((status IN ('rejected', 'failed')) = (failure IS NOT NULL))
);
-- A key is an answer for good.
CREATE UNIQUE INDEX jobs_key ON jobs (user_id, idempotency_key);
-- The head of an account's queue, and the sweep. Together with jobs_finished
-- it holds each job once, so a job costs three index entries, not four.
CREATE INDEX jobs_queued ON jobs (account_id, position) WHERE status = 'queued';
CREATE INDEX jobs_finished ON jobs (account_id, status, position) WHERE status <> 'queued';
ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- History, append-only. created_at rises strictly within an account, so that a
-- range of time is a range of seq.
CREATE TABLE transactions (
    account_id    bigint      NOT NULL,
    seq           bigint      NOT NULL CHECK (seq >= 1),
    amount        amount      NOT NULL,
    balance_after balance     NOT NULL,
    created_at    timestamptz NOT NULL,
    job_id        uuid,                            -- null for an initial deposit
    type          entry_type  NOT NULL,
    description   text,
    PRIMARY KEY (account_id, seq),
    CHECK (job_id IS NOT NULL OR (seq = 1 AND type = 'deposit')),
    -- What the row says of the balance before it can't be negative either.
    CHECK (type = 'withdrawal' OR balance_after >= amount)
);
-- A job is posted once, whatever the code does.
CREATE UNIQUE INDEX transactions_job ON transactions (job_id);
CREATE INDEX transactions_type ON transactions (account_id, type, seq);
CREATE UNIQUE INDEX transactions_time ON transactions (account_id, created_at);

-- The rules that no column can state. Their conditions are in WHEN, so a legal
-- change calls no function.

-- +goose StatementBegin
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END
$$;
-- +goose StatementEnd

CREATE TRIGGER transactions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('history is append-only');
CREATE TRIGGER jobs_are_kept BEFORE DELETE OR TRUNCATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
CREATE TRIGGER accounts_are_kept BEFORE DELETE OR TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('an account outlives its history');

CREATE TRIGGER jobs_start_queued BEFORE INSERT ON jobs
    FOR EACH ROW WHEN (NEW.status <> 'queued' OR NEW.attempts <> 0)
    EXECUTE FUNCTION refuse('a job starts queued');
CREATE TRIGGER jobs_states BEFORE UPDATE ON jobs
    FOR EACH ROW WHEN (NOT (OLD.status = 'queued' OR OLD.status = 'failed' AND NEW.status = 'queued'))
    EXECUTE FUNCTION refuse('a finished job never changes');
CREATE TRIGGER jobs_terms BEFORE UPDATE ON jobs
    FOR EACH ROW WHEN ((NEW.id, NEW.position, NEW.account_id, NEW.user_id, NEW.amount, NEW.created_at, NEW.type,
                        NEW.idempotency_key, NEW.description)
        IS DISTINCT FROM (OLD.id, OLD.position, OLD.account_id, OLD.user_id, OLD.amount, OLD.created_at, OLD.type,
                          OLD.idempotency_key, OLD.description))
    EXECUTE FUNCTION refuse('what was asked never changes');

-- A balance moves by one transaction at a time and forwards in time.
CREATE TRIGGER accounts_move BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (NOT (NEW.last_seq = OLD.last_seq + 1 AND NEW.last_at > OLD.last_at
                         OR (NEW.last_seq, NEW.balance, NEW.last_at) = (OLD.last_seq, OLD.balance, OLD.last_at)))
    EXECUTE FUNCTION refuse('a balance moves only with its history');
CREATE TRIGGER accounts_start_empty BEFORE INSERT ON accounts
    FOR EACH ROW WHEN (NEW.balance <> 0 OR NEW.last_seq <> 0)
    EXECUTE FUNCTION refuse('a balance moves only with its history');
CREATE TRIGGER accounts_terms BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN ((NEW.number, NEW.currency, NEW.user_id, NEW.created_at, NEW.open_key, NEW.open_request)
        IS DISTINCT FROM (OLD.number, OLD.currency, OLD.user_id, OLD.created_at, OLD.open_key, OLD.open_request))
    EXECUTE FUNCTION refuse('an account keeps its terms');

-- +goose Down
DROP TABLE transactions, jobs, accounts, refresh_tokens, sessions, users;
DROP SEQUENCE job_positions;
DROP FUNCTION refuse;
DROP TYPE entry_type, job_status;
DROP DOMAIN amount, balance;
