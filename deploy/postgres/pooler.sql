-- What the roles of roles.sql need behind PgBouncer in transaction mode, where a process sets nothing
-- in its sessions: other clients use the same ones. Each new connection checks these settings, and is
-- refused where they differ.
--
-- Run it as a superuser after roles.sql, before PgBouncer opens its first connection, or RECONNECT in
-- its console afterwards:
--
--     psql -v ON_ERROR_STOP=1 -f deploy/postgres/pooler.sql passbook
--
-- A role for a person, in passbook_operator, needs the settings of passbook_operator. Where
-- DATABASE_URL chooses another search_path, write that one here.

-- The settings of both roles.
DO $$
DECLARE
    role_name text;
    setting text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['passbook_serving', 'passbook_operator'] LOOP
        FOREACH setting IN ARRAY ARRAY[
            'search_path = public, pg_temp',
            'synchronous_commit = on',
            'lock_timeout = ''500ms''',
            'idle_session_timeout = 0',
            'tcp_keepalives_idle = 5',
            'tcp_keepalives_interval = 5',
            'tcp_keepalives_count = 3',
            'default_transaction_isolation = ''read committed''',
            'default_transaction_deferrable = off',
            'row_security = on',
            'array_nulls = on',
            'transform_null_equals = off',
            'bytea_output = hex',
            'intervalstyle = postgres'
        ] LOOP
            EXECUTE format('ALTER ROLE %I SET %s', role_name, setting);
        END LOOP;
    END LOOP;
END
$$;

ALTER ROLE passbook_serving SET statement_timeout = '3s';
ALTER ROLE passbook_serving SET idle_in_transaction_session_timeout = '5s';
ALTER ROLE passbook_serving SET enable_seqscan = off;
ALTER ROLE passbook_serving SET enable_bitmapscan = off;
ALTER ROLE passbook_serving SET jit = off;
ALTER ROLE passbook_serving SET plan_cache_mode = force_generic_plan;

ALTER ROLE passbook_operator SET statement_timeout = '15s';
ALTER ROLE passbook_operator SET idle_in_transaction_session_timeout = '15s';
