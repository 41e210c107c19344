-- +goose NO TRANSACTION
-- +goose Up

-- What holds the rules of the bank holds them in every session.
--
-- Each statement may be run twice, should a later one fail. Each of the last ones waits for
-- the writers of one table, and gives way after lock_timeout; none holds two tables at once,
-- so that no apply and this migration wait for each other.

-- The functions find the tables that stand in the schema of jobs, and the operators of
-- Postgres, whatever search_path and whatever temporary tables the session has: with an
-- empty temporary archived_jobs an archived key made a second job. The path names the
-- schema: DATABASE_URL may choose another one than public.
--
-- The clause costs 1.3 µs a call, an apply some 150. hold_balance and hold_transaction do
-- without: they name no table, and apply_job, which calls them for each apply, has set it.
-- +goose StatementBegin
DO $$
DECLARE
    ours     text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass);
    function regproc;
BEGIN
    FOREACH function IN ARRAY ARRAY['apply_job', 'hold_job', 'refuse', 'refuse_unless_archived', 'skip_archived']::regproc[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %s, pg_temp', function, ours);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- session_replication_role = replica does not switch a trigger off that is ENABLE ALWAYS:
-- archived keys made second jobs. A database that receives these tables by logical
-- replication disables the triggers until it serves; `worker verify` names those that are
-- not as they stand here (internal/ledger/guards.go). A migration that replaces a trigger
-- enables it again.
ALTER TABLE users ENABLE ALWAYS TRIGGER users_email_key;
ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_are_kept, ENABLE ALWAYS TRIGGER accounts_form, ENABLE ALWAYS TRIGGER accounts_move,
    ENABLE ALWAYS TRIGGER accounts_start_empty, ENABLE ALWAYS TRIGGER accounts_terms;
ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_are_kept, ENABLE ALWAYS TRIGGER jobs_form, ENABLE ALWAYS TRIGGER jobs_leave_archived,
    ENABLE ALWAYS TRIGGER jobs_skip_archived, ENABLE ALWAYS TRIGGER jobs_start_queued, ENABLE ALWAYS TRIGGER jobs_states,
    ENABLE ALWAYS TRIGGER jobs_terms;
ALTER TABLE archived_jobs ENABLE ALWAYS TRIGGER archived_jobs_append_only;
ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_append_only, ENABLE ALWAYS TRIGGER transactions_rules;

-- +goose Down
ALTER TABLE transactions ENABLE TRIGGER transactions_append_only, ENABLE TRIGGER transactions_rules;
ALTER TABLE archived_jobs ENABLE TRIGGER archived_jobs_append_only;
ALTER TABLE jobs ENABLE TRIGGER jobs_are_kept, ENABLE TRIGGER jobs_form, ENABLE TRIGGER jobs_leave_archived,
    ENABLE TRIGGER jobs_skip_archived, ENABLE TRIGGER jobs_start_queued, ENABLE TRIGGER jobs_states, ENABLE TRIGGER jobs_terms;
ALTER TABLE accounts ENABLE TRIGGER accounts_are_kept, ENABLE TRIGGER accounts_form, ENABLE TRIGGER accounts_move,
    ENABLE TRIGGER accounts_start_empty, ENABLE TRIGGER accounts_terms;
ALTER TABLE users ENABLE TRIGGER users_email_key;
ALTER FUNCTION apply_job RESET search_path;
ALTER FUNCTION hold_job RESET search_path;
ALTER FUNCTION refuse RESET search_path;
ALTER FUNCTION refuse_unless_archived RESET search_path;
ALTER FUNCTION skip_archived RESET search_path;
