-- +goose Up

-- Where finished jobs go after years, with their keys: a key is an answer for
-- good. `worker archive` moves them; what moves is never looked for by an apply.
-- The table and its indexes may be moved to another, slower tablespace
-- (ALTER TABLE archived_jobs SET TABLESPACE …), but not away: each accept looks
-- for its key here.
--
-- The columns are those of jobs, in their order, so that a read can put the two
-- tables together. Whoever adds one there adds it here, in the same migration.
CREATE TABLE archived_jobs (
    LIKE jobs,
    PRIMARY KEY (id),
    CHECK (status IN ('succeeded', 'rejected'))    -- what never changes any more
);
CREATE UNIQUE INDEX archived_jobs_key ON archived_jobs (user_id, idempotency_key);
CREATE INDEX archived_jobs_account ON archived_jobs (account_id, status, position);
CREATE TRIGGER archived_jobs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON archived_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');

-- A job leaves only when it stands in the archive, to the letter.

-- +goose StatementBegin
CREATE FUNCTION refuse_unless_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM archived_jobs archived WHERE archived.id = OLD.id AND ROW(archived.*) IS NOT DISTINCT FROM ROW(OLD.*)) THEN
        RAISE EXCEPTION '% on %: a key is an answer for good', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$;
-- +goose StatementEnd

CREATE OR REPLACE TRIGGER jobs_are_kept BEFORE TRUNCATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
CREATE TRIGGER jobs_leave_archived BEFORE DELETE ON jobs
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_archived();

-- An archived job's key or id makes no second job, whoever asks: the row is left
-- out, as ON CONFLICT DO NOTHING leaves out that of a key in jobs. So it holds for
-- builds that know nothing of the archive too.
--
-- An insert could look here before a move's commit, then meet the key in jobs, wait
-- for that commit, and find the key free. So a move takes the keys' locks, which
-- every build's accepts share while they insert (internal/job/archive.go). To lock
-- the key's job here instead would cost each accept as much again as the look.

-- +goose StatementBegin
CREATE FUNCTION skip_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM archived_jobs WHERE user_id = NEW.user_id AND idempotency_key = NEW.idempotency_key)
        OR EXISTS (SELECT FROM archived_jobs WHERE id = NEW.id) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd

CREATE TRIGGER jobs_skip_archived BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION skip_archived();

-- +goose Down
DROP TRIGGER jobs_skip_archived ON jobs;
DROP TRIGGER jobs_leave_archived ON jobs;
CREATE OR REPLACE TRIGGER jobs_are_kept BEFORE DELETE OR TRUNCATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('a key is an answer for good');
-- What was archived goes back: its keys must not be lost.
ALTER TABLE jobs DISABLE TRIGGER jobs_start_queued;
INSERT INTO jobs SELECT * FROM archived_jobs;
ALTER TABLE jobs ENABLE TRIGGER jobs_start_queued;
DROP TABLE archived_jobs;
DROP FUNCTION refuse_unless_archived, skip_archived;
