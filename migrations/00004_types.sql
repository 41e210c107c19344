-- +goose NO TRANSACTION
-- +goose Up

-- A type's transactions by their time, in an index of its own: with the type in
-- the key each entry was eight bytes wider, and a type within a time was two
-- lookups more. A process of the build before, until it is replaced, finds a rare
-- type more slowly; nothing else of it needs the old index.
--
-- Each statement may be run twice, should a later one fail; nobody waits for any.

DROP INDEX CONCURRENTLY IF EXISTS transactions_deposits;
CREATE INDEX CONCURRENTLY transactions_deposits ON transactions (account_id, created_at) WHERE type = 'deposit';
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawals;
CREATE INDEX CONCURRENTLY transactions_withdrawals ON transactions (account_id, created_at) WHERE type = 'withdrawal';
DROP INDEX CONCURRENTLY IF EXISTS transactions_type;

-- +goose Down
CREATE INDEX CONCURRENTLY transactions_type ON transactions (account_id, type, seq);
DROP INDEX CONCURRENTLY IF EXISTS transactions_deposits;
DROP INDEX CONCURRENTLY IF EXISTS transactions_withdrawals;
