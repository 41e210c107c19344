-- +goose NO TRANSACTION
-- +goose Up

-- A position is that of one job of its account, in each of the three indexes that hold
-- the positions: where two jobs had one, a list that was read page by page lost a job.
-- Across the indexes `worker verify` looks; and processes do not start on a database
-- whose sequence would give a position again.
--
-- Each statement may be run twice, should a later one fail; an old index goes when the
-- new one is there. They wait for the end of every older snapshot, of an export perhaps,
-- and nothing waits for them.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS jobs_queue;
CREATE UNIQUE INDEX CONCURRENTLY jobs_queue ON jobs (account_id, position) WHERE status = 'queued';
DROP INDEX CONCURRENTLY IF EXISTS jobs_queued;
DROP INDEX CONCURRENTLY IF EXISTS jobs_ended;
CREATE UNIQUE INDEX CONCURRENTLY jobs_ended ON jobs (account_id, status, position) WHERE status <> 'queued';
DROP INDEX CONCURRENTLY IF EXISTS jobs_finished;
DROP INDEX CONCURRENTLY IF EXISTS archived_jobs_ended;
CREATE UNIQUE INDEX CONCURRENTLY archived_jobs_ended ON archived_jobs (account_id, status, position);
DROP INDEX CONCURRENTLY IF EXISTS archived_jobs_account;
RESET lock_timeout;

-- +goose Down
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_queued ON jobs (account_id, position) WHERE status = 'queued';
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_finished ON jobs (account_id, status, position) WHERE status <> 'queued';
CREATE INDEX CONCURRENTLY IF NOT EXISTS archived_jobs_account ON archived_jobs (account_id, status, position);
DROP INDEX CONCURRENTLY IF EXISTS jobs_queue;
DROP INDEX CONCURRENTLY IF EXISTS jobs_ended;
DROP INDEX CONCURRENTLY IF EXISTS archived_jobs_ended;
