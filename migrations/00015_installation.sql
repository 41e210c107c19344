-- +goose Up

-- Which installation this database is. Processes keep the id in Redis, too, so that two
-- installations that use the same queues are noticed. A copy of the database has the
-- same id, until `UPDATE installation SET id = gen_random_uuid()`.
CREATE TABLE installation (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    id      uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO installation DEFAULT VALUES;

-- +goose Down
DROP TABLE installation;
