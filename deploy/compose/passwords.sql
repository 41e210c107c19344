-- The roles, and their passwords from compose's secrets.
\set ON_ERROR_STOP on
\set QUIET on
\ir roles.sql
\set owner `cat /run/secrets/owner_password`
\set serving `cat /run/secrets/serving_password`
\set operator `cat /run/secrets/operator_password`
-- The server logs a statement that fails, and must not log a password.
SET log_min_error_statement = panic;
ALTER ROLE passbook_owner LOGIN PASSWORD :'owner';
ALTER ROLE passbook_serving LOGIN PASSWORD :'serving';
ALTER ROLE passbook_operator LOGIN PASSWORD :'operator';
