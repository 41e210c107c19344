-- +goose Up

-- A job leaves jobs only when it stands in archived_jobs, to the letter. The columns are
-- named, as in every statement that reads the two tables together (internal/job/job.go):
-- one that is added to a table while processes run is in the other a moment later, and
-- perhaps in another place. A migration that adds one here replaces this function.
--
-- CREATE OR REPLACE waits for nobody; a delete that is under way ends with the old body.

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION refuse_unless_archived() RETURNS trigger LANGUAGE plpgsql AS $$
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
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION refuse_unless_archived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM archived_jobs archived WHERE archived.id = OLD.id AND ROW(archived.*) IS NOT DISTINCT FROM ROW(OLD.*)) THEN
        RAISE EXCEPTION '% on %: a key is an answer for good', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$;
-- +goose StatementEnd
