-- +goose NO TRANSACTION
-- +goose Up

-- What sign-ups, refreshes, the pruning of sessions and the count of failed jobs stand on.
--
-- Each statement may be run twice, should a later one fail. Processes of the build before
-- go on meanwhile: they write no email_key, so a trigger does, and they know the unique
-- index by its name, users_email, which the new one takes over.

-- Emails compare by email_key, which the API makes (internal/auth/users.go): Unicode's simple
-- case folding, whatever the database's locale. SQL knows no such folding; for emails in
-- ASCII this lower() is the same. No release has stored any other.
ALTER TABLE users ADD COLUMN IF NOT EXISTS email_key text COLLATE "C";
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION set_email_key() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    NEW.email_key := lower(NEW.email COLLATE "C");
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE OR REPLACE TRIGGER users_email_key BEFORE INSERT ON users
    FOR EACH ROW WHEN (NEW.email_key IS NULL) EXECUTE FUNCTION set_email_key();
UPDATE users SET email_key = lower(email COLLATE "C") WHERE email_key IS NULL;
ALTER TABLE users ALTER COLUMN email_key SET NOT NULL;

-- A refresh token knows the one that it was given for, and a spent one whether it may be
-- used once more for a short while.
ALTER TABLE refresh_tokens ADD COLUMN IF NOT EXISTS parent bytea,
    ADD COLUMN IF NOT EXISTS closed boolean NOT NULL DEFAULT false;

-- The indexes wait for the end of every older snapshot, and nothing waits for them. What
-- stands above takes locks that log-ins need, and gives way after lock_timeout.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS users_email_key;
CREATE UNIQUE INDEX CONCURRENTLY users_email_key ON users (email_key);
DROP INDEX CONCURRENTLY IF EXISTS users_email;
ALTER INDEX users_email_key RENAME TO users_email;

-- To delete a session with its tokens, and to find a user's oldest live session.
DROP INDEX CONCURRENTLY IF EXISTS refresh_tokens_session;
CREATE INDEX CONCURRENTLY refresh_tokens_session ON refresh_tokens (session_id, expires_at);
DROP INDEX CONCURRENTLY IF EXISTS sessions_live;
CREATE INDEX CONCURRENTLY sessions_live ON sessions (user_id, created_at) WHERE revoked_at IS NULL;

-- To count the failed jobs, which are few.
DROP INDEX CONCURRENTLY IF EXISTS jobs_failed;
CREATE INDEX CONCURRENTLY jobs_failed ON jobs (position) WHERE status = 'failed';

RESET lock_timeout;

-- +goose Down
DROP INDEX CONCURRENTLY IF EXISTS jobs_failed;
DROP INDEX CONCURRENTLY IF EXISTS sessions_live;
DROP INDEX CONCURRENTLY IF EXISTS refresh_tokens_session;
ALTER TABLE refresh_tokens DROP COLUMN IF EXISTS parent, DROP COLUMN IF EXISTS closed;
DROP INDEX CONCURRENTLY IF EXISTS users_email;
DROP TRIGGER IF EXISTS users_email_key ON users;
DROP FUNCTION IF EXISTS set_email_key;
ALTER TABLE users DROP COLUMN IF EXISTS email_key;
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS users_email ON users (lower(email));
