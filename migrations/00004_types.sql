-- +goose NO TRANSACTION
-- +goose Up

-- A type's transactions by their time, in an index of its own: with the type in
-- the key each entry was eight bytes wider, and a type within a time was two
-- lookups more. The old index, transactions_type, goes in a later release: the
-- build before reads every page of a type by it.
--
-- Each statement may be run twice, should a later one fail. They wait for whoever
-- holds a snapshot, an export perhaps, for as long as that takes, and nobody waits
-- for them.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS transactions_deposits;
CREATE INDEX CONCURRENTLY transactions_deposits ON transactions (account_id, created_at) WHERE type = 'deposit';
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawals;
CREATE INDEX CONCURRENTLY transactions_withdrawals ON transactions (account_id, created_at) WHERE type = 'withdrawal';
RESET lock_timeout;

-- +goose Down
DROP INDEX CONCURRENTLY IF EXISTS transactions_deposits;
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawals;
