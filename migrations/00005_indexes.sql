-- +goose NO TRANSACTION
-- +goose Up

-- A job is posted once, as before, in an index without the initial deposits. They
-- have no job, and nulls stand at an index's end: so no posting was ever the last
-- entry, and Postgres left each page that was full half empty, not at nine tenths.
--
-- transactions_type nobody reads by since 00004.
--
-- Each statement may be run twice, should a later one fail. They wait for whoever
-- reads the table, for as long as that takes, and nobody waits for them.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS transactions_posting;
CREATE UNIQUE INDEX CONCURRENTLY transactions_posting ON transactions (job_id) WHERE job_id IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS transactions_job;
DROP INDEX CONCURRENTLY IF EXISTS transactions_type;
-- History is vacuumed to freeze it and analyzed for its plans' sake, a twentieth at
-- a time: at the defaults, a fifth and a tenth, the work of months comes at once.
ALTER TABLE transactions SET (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
RESET lock_timeout;

-- +goose Down
ALTER TABLE transactions RESET (autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS transactions_job ON transactions (job_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS transactions_type ON transactions (account_id, type, seq);
DROP INDEX CONCURRENTLY IF EXISTS transactions_posting;
