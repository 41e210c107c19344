-- +goose NO TRANSACTION
-- +goose Up

-- A history's times are in its types' indexes, which the build before merges where
-- it reads them all. So transactions_time goes, and with it an entry of every apply.
-- That no time is there twice, these hold within a type; across types it is the
-- apply's doing, and `worker verify` looks.
--
-- Each statement may be run twice, should a later one fail; the old indexes go when
-- the new ones are there. They wait for whoever holds a snapshot, an export perhaps,
-- for as long as that takes, and nobody waits for them.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS transactions_deposit_times;
CREATE UNIQUE INDEX CONCURRENTLY transactions_deposit_times ON transactions (account_id, created_at) WHERE type = 'deposit';
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawal_times;
CREATE UNIQUE INDEX CONCURRENTLY transactions_withdrawal_times ON transactions (account_id, created_at) WHERE type = 'withdrawal';
DROP INDEX CONCURRENTLY IF EXISTS transactions_deposits;
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawals;
DROP INDEX CONCURRENTLY IF EXISTS transactions_time;
RESET lock_timeout;

-- +goose Down
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS transactions_time ON transactions (account_id, created_at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS transactions_deposits ON transactions (account_id, created_at) WHERE type = 'deposit';
CREATE INDEX CONCURRENTLY IF NOT EXISTS transactions_withdrawals ON transactions (account_id, created_at) WHERE type = 'withdrawal';
DROP INDEX CONCURRENTLY IF EXISTS transactions_deposit_times;
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawal_times;
