-- What the roles of roles.sql need behind PgBouncer in transaction mode, where a process sets nothing
-- in its sessions: other clients use the same ones. Each new connection checks these settings, and is
-- refused where they differ.
--
-- Run it as a superuser after roles.sql, before PgBouncer opens its first connection, or RECONNECT in
-- its console afterwards:
--
--     psql -v ON_ERROR_STOP=1 -f deploy/postgres/pooler.sql passbook
--
-- A role for a person, in passbook_operator, needs the settings of that one. Where DATABASE_URL chooses
-- another search_path, write that one here.

ALTER ROLE passbook_serving SET search_path = public, pg_temp;
ALTER ROLE passbook_serving SET synchronous_commit = on;
ALTER ROLE passbook_serving SET statement_timeout = '3s';
ALTER ROLE passbook_serving SET lock_timeout = '500ms';
ALTER ROLE passbook_serving SET idle_in_transaction_session_timeout = '5s';
ALTER ROLE passbook_serving SET idle_session_timeout = 0;
ALTER ROLE passbook_serving SET tcp_keepalives_idle = 5;
ALTER ROLE passbook_serving SET tcp_keepalives_interval = 5;
ALTER ROLE passbook_serving SET tcp_keepalives_count = 3;
ALTER ROLE passbook_serving SET enable_seqscan = off;
ALTER ROLE passbook_serving SET enable_bitmapscan = off;
ALTER ROLE passbook_serving SET jit = off;
ALTER ROLE passbook_serving SET plan_cache_mode = force_generic_plan;
ALTER ROLE passbook_serving SET default_transaction_isolation = 'read committed';
ALTER ROLE passbook_serving SET default_transaction_deferrable = off;
ALTER ROLE passbook_serving SET row_security = on;
ALTER ROLE passbook_serving SET array_nulls = on;
ALTER ROLE passbook_serving SET transform_null_equals = off;
ALTER ROLE passbook_serving SET bytea_output = 'hex';
ALTER ROLE passbook_serving SET intervalstyle = 'postgres';

ALTER ROLE passbook_operator SET search_path = public, pg_temp;
ALTER ROLE passbook_operator SET synchronous_commit = on;
ALTER ROLE passbook_operator SET statement_timeout = '15s';
ALTER ROLE passbook_operator SET lock_timeout = '500ms';
ALTER ROLE passbook_operator SET idle_in_transaction_session_timeout = '15s';
ALTER ROLE passbook_operator SET idle_session_timeout = 0;
ALTER ROLE passbook_operator SET tcp_keepalives_idle = 5;
ALTER ROLE passbook_operator SET tcp_keepalives_interval = 5;
ALTER ROLE passbook_operator SET tcp_keepalives_count = 3;
ALTER ROLE passbook_operator SET default_transaction_isolation = 'read committed';
ALTER ROLE passbook_operator SET default_transaction_deferrable = off;
ALTER ROLE passbook_operator SET row_security = on;
ALTER ROLE passbook_operator SET array_nulls = on;
ALTER ROLE passbook_operator SET transform_null_equals = off;
ALTER ROLE passbook_operator SET bytea_output = 'hex';
ALTER ROLE passbook_operator SET intervalstyle = 'postgres';
