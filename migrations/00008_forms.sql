-- +goose NO TRANSACTION
-- +goose Up

-- The forms of what never changes are looked at where somebody sets it, at the insert:
-- that none of it changes, jobs_terms and accounts_terms hold. Postgres reads the tree
-- of each check anew for every statement that changes a row, and matches the row with
-- its patterns: for these, some tenth of what an apply cost it.
--
-- last_seq starts at 0 and rises by one: accounts_start_empty, accounts_move.
--
-- Each statement may be run twice, should a later one fail; no row is at any time
-- without its rules.

CREATE OR REPLACE TRIGGER jobs_form BEFORE INSERT ON jobs
    FOR EACH ROW WHEN (NOT (length(NEW.idempotency_key) BETWEEN 1 AND 255 AND NEW.idempotency_key !~ '[^!-~]'
        AND (NEW.description IS NULL OR length(NEW.description) <= 140)))
    EXECUTE FUNCTION refuse('a key is of 1 to 255 visible characters, a description of 140 at most');
ALTER TABLE jobs DROP CONSTRAINT IF EXISTS jobs_idempotency_key_form, DROP CONSTRAINT IF EXISTS jobs_description_check;

CREATE OR REPLACE TRIGGER accounts_form BEFORE INSERT ON accounts
    FOR EACH ROW WHEN (NOT (length(NEW.number) BETWEEN 4 AND 34 AND NEW.number !~ '[^A-Za-z0-9-]'
        AND NEW.currency ~ '^[A-Z]{3}$' AND (NEW.open_key IS NULL) = (NEW.open_request IS NULL)))
    EXECUTE FUNCTION refuse('a number is of 4 to 34 letters, digits and hyphens, a currency of three letters; a key stands with its request');
ALTER TABLE accounts DROP CONSTRAINT IF EXISTS accounts_number_form, DROP CONSTRAINT IF EXISTS accounts_currency_check,
    DROP CONSTRAINT IF EXISTS accounts_check, DROP CONSTRAINT IF EXISTS accounts_last_seq_check;

-- +goose Down
ALTER TABLE jobs ADD CONSTRAINT jobs_idempotency_key_form CHECK (length(idempotency_key) BETWEEN 1 AND 255 AND idempotency_key !~ '[^!-~]'),
    ADD CONSTRAINT jobs_description_check CHECK (length(description) <= 140);
DROP TRIGGER jobs_form ON jobs;
ALTER TABLE accounts ADD CONSTRAINT accounts_number_form CHECK (length(number) BETWEEN 4 AND 34 AND number !~ '[^A-Za-z0-9-]'),
    ADD CONSTRAINT accounts_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
    ADD CONSTRAINT accounts_check CHECK ((open_key IS NULL) = (open_request IS NULL)),
    ADD CONSTRAINT accounts_last_seq_check CHECK (last_seq >= 0);
DROP TRIGGER accounts_form ON accounts;
