-- +goose NO TRANSACTION
-- +goose Up

-- The same forms as before, looked at in another way. Postgres checks a row
-- whenever it changes, so each apply pays for these; a counted repetition, as in
-- {1,255}, made the key's cost it more than everything else of a job together.
--
-- Each statement may be run twice, should one of them fail; the whole table is
-- read without being locked, and is at no time without a check.

ALTER TABLE jobs DROP CONSTRAINT IF EXISTS jobs_idempotency_key_form, ADD CONSTRAINT jobs_idempotency_key_form
    CHECK (length(idempotency_key) BETWEEN 1 AND 255 AND idempotency_key !~ '[^!-~]') NOT VALID;
ALTER TABLE jobs VALIDATE CONSTRAINT jobs_idempotency_key_form;
ALTER TABLE jobs DROP CONSTRAINT IF EXISTS jobs_idempotency_key_check;

ALTER TABLE accounts DROP CONSTRAINT IF EXISTS accounts_number_form, ADD CONSTRAINT accounts_number_form
    CHECK (length(number) BETWEEN 4 AND 34 AND number !~ '[^A-Za-z0-9-]') NOT VALID;
ALTER TABLE accounts VALIDATE CONSTRAINT accounts_number_form;
ALTER TABLE accounts DROP CONSTRAINT IF EXISTS accounts_number_check;

-- +goose Down
ALTER TABLE jobs ADD CONSTRAINT jobs_idempotency_key_check CHECK (idempotency_key ~ '^[!-~]{1,255}$');
ALTER TABLE jobs DROP CONSTRAINT jobs_idempotency_key_form;
ALTER TABLE accounts ADD CONSTRAINT accounts_number_check CHECK (number ~ '^[A-Za-z0-9-]{4,34}$');
ALTER TABLE accounts DROP CONSTRAINT accounts_number_form;
