-- The three roles of an installation: passbook_owner migrates, passbook_serving serves,
-- passbook_operator is for people.
--
-- Run it as a superuser in Passbook's database before the first `api migrate`, and again
-- after each one:
--
--     psql -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql passbook
--
-- The roles may log in once the operator says how:
--
--     ALTER ROLE passbook_owner LOGIN PASSWORD '…';
--     ALTER ROLE passbook_serving LOGIN PASSWORD '…';
--     ALTER ROLE passbook_operator LOGIN PASSWORD '…';
--
-- passbook_owner is for the DATABASE_URL of `api migrate` alone. passbook_serving is for that of
-- the running api and worker: it owns nothing, so it can't touch triggers and functions, and it
-- moves a balance and writes history only by the functions that do these things as a whole.
-- passbook_operator is for that of the worker's subcommands: it reads everything, freezes and
-- closes accounts, replays and archives jobs, and moves no balance. Each action leaves a row of
-- who, when and why. A role for each person, with the rights of this one, names them:
--
--     CREATE ROLE alice LOGIN PASSWORD '…' IN ROLE passbook_operator;
--
-- Where DATABASE_URL chooses another schema than public, write that one here. Where another
-- role has migrated before: REASSIGN OWNED BY that_role TO passbook_owner.

DO $$
BEGIN
    IF to_regrole('passbook_owner') IS NULL THEN
        CREATE ROLE passbook_owner;
    END IF;
    IF to_regrole('passbook_serving') IS NULL THEN
        CREATE ROLE passbook_serving;
    END IF;
    IF to_regrole('passbook_operator') IS NULL THEN
        CREATE ROLE passbook_operator;
    END IF;
    -- Temporary tables stand before others where a search_path does not say otherwise.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO passbook_owner;
GRANT USAGE ON SCHEMA public TO passbook_serving, passbook_operator;
-- `worker accounts show` names the session that has locked an account.
GRANT pg_read_all_stats TO passbook_operator;

-- What a later migration makes can be read at once, so that the serving processes start;
-- what they may write there, this file says when it is run again.
ALTER DEFAULT PRIVILEGES FOR ROLE passbook_owner IN SCHEMA public GRANT SELECT ON TABLES TO passbook_serving;
ALTER DEFAULT PRIVILEGES FOR ROLE passbook_owner IN SCHEMA public GRANT SELECT ON SEQUENCES TO passbook_serving;

DO $$
BEGIN
    IF to_regclass('public.accounts') IS NULL THEN
        RAISE NOTICE 'run this file again after `api migrate`';
        RETURN;
    END IF;

    -- The functions that move a balance have the owner's rights, which a REVOKE can take from it too.
    GRANT ALL ON ALL TABLES IN SCHEMA public TO passbook_owner;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO passbook_owner;
    GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO passbook_owner;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM passbook_serving, passbook_operator;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM passbook_serving, passbook_operator;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM passbook_serving, passbook_operator;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO passbook_serving, passbook_operator;
    GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO passbook_serving, passbook_operator;
    -- An operator reads the ledger, and no secret of a user.
    REVOKE SELECT ON public.users, public.sessions, public.refresh_tokens FROM passbook_operator;

    -- A log-in locks the user's row, which takes a right to update some column of it.
    GRANT INSERT (id, email, email_key, password_hash), UPDATE (password_hash) ON public.users TO passbook_serving;
    GRANT INSERT (id, user_id), UPDATE (revoked_at), DELETE ON public.sessions TO passbook_serving;
    GRANT INSERT (hash, session_id, parent, expires_at), UPDATE (spent_at, closed), DELETE ON public.refresh_tokens TO passbook_serving;

    -- An account is opened empty. To lock its row takes a right to update some column of it:
    -- created_at is one that accounts_terms lets no value of change.
    GRANT INSERT (user_id, number, currency, open_key, open_request, last_at, created_at), UPDATE (created_at) ON public.accounts TO passbook_serving;
    GRANT USAGE ON SEQUENCE public.job_positions TO passbook_serving;
    GRANT INSERT (id, account_id, user_id, type, amount, idempotency_key, description) ON public.jobs TO passbook_serving;
    -- To count an attempt and to end a job failed. A trigger takes the job out of the queue.
    GRANT UPDATE (attempts) ON public.queue TO passbook_serving;
    GRANT INSERT (account_id, position, job_id, attempts, finished_at, failure, detail) ON public.failures TO passbook_serving;

    -- What moves a balance with its history, and the time until which balances were answered.
    GRANT EXECUTE ON FUNCTION public.apply_job, public.deposit_initial, public.close_history TO passbook_serving;

    -- An action's trigger makes the change, dates it and names the role.
    GRANT INSERT (account_id, action, job_id, person, reason) ON public.operator_actions TO passbook_operator;
    GRANT EXECUTE ON FUNCTION public.archive_jobs TO passbook_operator;
END
$$;
