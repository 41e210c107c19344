-- +goose NO TRANSACTION
-- +goose Up

-- Since 00004 nobody reads by it. The statement waits for who reads the table, and
-- nobody waits for it.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS transactions_type;
RESET lock_timeout;

-- +goose Down
CREATE INDEX CONCURRENTLY IF NOT EXISTS transactions_type ON transactions (account_id, type, seq);
