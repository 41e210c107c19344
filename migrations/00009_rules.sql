-- +goose NO TRANSACTION
-- +goose Up

-- The same rules as before, for every session whose triggers fire, looked at in another
-- way. Postgres reads the tree of each check, and of each trigger's condition, anew for
-- every statement that may concern it: a sixth of what an apply cost it. A function's
-- body it reads once a connection.
--
-- Each statement may be run twice, should a later one fail; no row is at any time
-- without its rules.

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION hold_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (OLD.status = 'queued' OR OLD.status = 'failed' AND NEW.status = 'queued') THEN
        RAISE EXCEPTION '% on %: a finished job never changes', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT (NEW.attempts >= 0 AND CASE NEW.status
        WHEN 'queued' THEN num_nonnulls(NEW.finished_at, NEW.seq, NEW.balance_after, NEW.failure) = 0
        WHEN 'succeeded' THEN num_nulls(NEW.finished_at, NEW.seq, NEW.balance_after) = 0 AND NEW.failure IS NULL
        ELSE num_nulls(NEW.finished_at, NEW.failure) = 0 AND num_nonnulls(NEW.seq, NEW.balance_after) = 0
    END) THEN
        RAISE EXCEPTION '% on %: a job has what belongs to its status, and nothing else', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE OR REPLACE TRIGGER jobs_states BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION hold_job();
CREATE OR REPLACE TRIGGER jobs_start_queued BEFORE INSERT ON jobs
    FOR EACH ROW WHEN (NEW.status <> 'queued' OR NEW.attempts <> 0
        OR num_nonnulls(NEW.finished_at, NEW.seq, NEW.balance_after, NEW.failure) > 0)
    EXECUTE FUNCTION refuse('a job starts queued');
ALTER TABLE jobs DROP CONSTRAINT IF EXISTS jobs_check, DROP CONSTRAINT IF EXISTS jobs_check1, DROP CONSTRAINT IF EXISTS jobs_check2,
    DROP CONSTRAINT IF EXISTS jobs_attempts_check;

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION hold_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (NEW.last_seq = OLD.last_seq + 1 AND NEW.last_at > OLD.last_at
         OR NEW.last_seq = OLD.last_seq AND NEW.balance = OLD.balance AND NEW.last_at = OLD.last_at) THEN
        RAISE EXCEPTION '% on %: a balance moves only with its history', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE OR REPLACE TRIGGER accounts_move BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION hold_balance();

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION hold_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (NEW.seq >= 1 AND (NEW.job_id IS NOT NULL OR NEW.seq = 1 AND NEW.type = 'deposit')) THEN
        RAISE EXCEPTION '% on %: a posting has its job, but for an initial deposit', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- What the row says of the balance before it can't be negative either.
    IF NOT (NEW.type = 'withdrawal' OR NEW.balance_after >= NEW.amount) THEN
        RAISE EXCEPTION '% on %: no balance was ever negative', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE OR REPLACE TRIGGER transactions_rules BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION hold_transaction();
ALTER TABLE transactions DROP CONSTRAINT IF EXISTS transactions_check, DROP CONSTRAINT IF EXISTS transactions_check1,
    DROP CONSTRAINT IF EXISTS transactions_seq_check;

-- +goose Down
ALTER TABLE transactions DROP CONSTRAINT IF EXISTS transactions_check, DROP CONSTRAINT IF EXISTS transactions_check1,
    DROP CONSTRAINT IF EXISTS transactions_seq_check,
    ADD CONSTRAINT transactions_seq_check CHECK (seq >= 1),
    ADD CONSTRAINT transactions_check CHECK (job_id IS NOT NULL OR (seq = 1 AND type = 'deposit')),
    ADD CONSTRAINT transactions_check1 CHECK (type = 'withdrawal' OR balance_after >= amount);
DROP TRIGGER IF EXISTS transactions_rules ON transactions;
CREATE OR REPLACE TRIGGER accounts_move BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (NOT (NEW.last_seq = OLD.last_seq + 1 AND NEW.last_at > OLD.last_at
                         OR (NEW.last_seq, NEW.balance, NEW.last_at) = (OLD.last_seq, OLD.balance, OLD.last_at)))
    EXECUTE FUNCTION refuse('a balance moves only with its history');
ALTER TABLE jobs DROP CONSTRAINT IF EXISTS jobs_check, DROP CONSTRAINT IF EXISTS jobs_check1, DROP CONSTRAINT IF EXISTS jobs_check2,
    DROP CONSTRAINT IF EXISTS jobs_attempts_check,
    ADD CONSTRAINT jobs_attempts_check CHECK (attempts >= 0),
    ADD CONSTRAINT jobs_check CHECK ((status = 'queued') = (finished_at IS NULL)),
    ADD CONSTRAINT jobs_check1 CHECK ((status = 'succeeded') = (seq IS NOT NULL AND balance_after IS NOT NULL)),
    ADD CONSTRAINT jobs_check2 CHECK ((status IN ('rejected', 'failed')) = (failure IS NOT NULL));
CREATE OR REPLACE TRIGGER jobs_start_queued BEFORE INSERT ON jobs
    FOR EACH ROW WHEN (NEW.status <> 'queued' OR NEW.attempts <> 0)
    EXECUTE FUNCTION refuse('a job starts queued');
CREATE OR REPLACE TRIGGER jobs_states BEFORE UPDATE ON jobs
    FOR EACH ROW WHEN (NOT (OLD.status = 'queued' OR OLD.status = 'failed' AND NEW.status = 'queued'))
    EXECUTE FUNCTION refuse('a finished job never changes');
DROP FUNCTION IF EXISTS hold_job, hold_balance, hold_transaction;
