package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrUnsuitable is returned for a database that no session setting can make safe.
var ErrUnsuitable = errors.New("unsuitable database")

// startParams are the settings with which a connection begins. PgBouncer keeps them for each of
// its clients, and refuses all others at the start of a connection.
var startParams = settings{
	"client_encoding":             "UTF8",
	"timezone":                    "UTC",
	"datestyle":                   "ISO, MDY",
	"standard_conforming_strings": "on",
}

// sessionParams are the settings that the statements rely on, whatever the configuration of the
// server, the database or the role says. Each session sets them itself, also if the value is
// right already: when the server reloads its configuration, only the settings that a session has
// set itself stay as they are.
// https://www.postgresql.org/docs/current/config-setting.html
var sessionParams = settings{
	"intervalstyle":                  "postgres",
	"bytea_output":                   "hex",
	"transform_null_equals":          "off",
	"default_transaction_isolation":  "read committed", // what the statements are written for
	"default_transaction_deferrable": "off",
	"array_nulls":                    "on",
	"row_security":                   "on", // off makes Postgres refuse every statement of a role to which a policy applies
	"idle_session_timeout":           "0",  // the pool closes idle connections itself
}

// settings are settings of Postgres and their values.
type settings map[string]string

const searchPath = "public, pg_temp"

// SetSession adds to cfg the session settings that Passbook needs, for a connection to the server
// itself. A search_path in the URL stays. SecureSession must follow on each new connection.
func SetSession(cfg *pgx.ConnConfig, application string) {
	maps.Copy(cfg.RuntimeParams, takeSettings(cfg, application))
}

// takeSettings returns the settings that a session of cfg needs, and leaves in cfg those with which
// a connection may begin behind a pooler too.
func takeSettings(cfg *pgx.ConnConfig, application string) settings {
	params := cfg.RuntimeParams
	params["application_name"] = application
	maps.Copy(params, startParams)
	session := maps.Clone(sessionParams)
	session["search_path"] = cmp.Or(params["search_path"], searchPath)
	for name := range session {
		delete(params, name)
	}
	return session
}

// sessionSQL sets the settings $2 to the values $3, and what the promises rely on:
//   - synchronous_commit is on, because a 202 says that the job is on disk. The stronger
//     remote_apply stays.
//   - session_replication_role is origin, because any other value turns off triggers. Some roles
//     may not set it.
//   - transaction_timeout, new in Postgres 17, is 0: it would end a step of an archive or of a
//     migration. Statements have their own bounds.
//
// Behind a pooler it sets nothing, because the session belongs to other clients too. $1 is the
// server process that the connection was told of at its start: a pooler tells a number of its own.
//
// One row: whether the session is the connection's own, the encoding of the database, the resulting
// session_replication_role and synchronous_commit, the result of setting transaction_timeout, the
// number of settings, and the server life.
const sessionSQL = `
	SELECT own, current_setting('server_encoding'),
		CASE WHEN own AND has_parameter_privilege('session_replication_role', 'SET')
			THEN set_config('session_replication_role', 'origin', false)
			ELSE current_setting('session_replication_role')
		END,
		CASE WHEN own AND current_setting('synchronous_commit') <> 'remote_apply'
			THEN set_config('synchronous_commit', 'on', false)
			WHEN own THEN set_config('synchronous_commit', 'remote_apply', false)
			ELSE current_setting('synchronous_commit')
		END,
		CASE WHEN own AND current_setting('transaction_timeout', true) IS NOT NULL
			THEN set_config('transaction_timeout', '0', false)
		END,
		(SELECT count(set_config(name, value, false)) FROM unnest($2::text[], $3::text[]) AS setting (name, value) WHERE own), ` + lifeSQL + `
	FROM (SELECT pg_backend_pid() = $1::bigint AS own) session`

// unsafeSQL finds the settings that a 202 relies on and that no session can set.
//
// One row for each setting that is off: its name.
const unsafeSQL = `SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'`

// warnOfUnsafe logs the settings with which a crash of the server's machine loses or
// damages what was committed.
func warnOfUnsafe(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	rows, _ := pool.Query(ctx, unsafeSQL) // CollectRows returns its error
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read the server's settings: %w", err)
	}
	for _, name := range names {
		log.Warn("a crash of Postgres's machine loses accepted jobs; turn the setting on", "setting", name)
	}
	return nil
}

// Queryer is a connection, or a pool of them.
type Queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// CheckWrites returns ErrUnsuitable, with what to do, for a database that takes no writes.
func CheckWrites(ctx context.Context, db Queryer) error {
	const sql = `SELECT current_setting('transaction_read_only') = 'on', pg_is_in_recovery()`
	var readOnly, standby bool
	if err := db.QueryRow(ctx, sql).Scan(&readOnly, &standby); err != nil {
		return fmt.Errorf("check whether Postgres takes writes: %w", err)
	}
	switch {
	case standby:
		return fmt.Errorf("%w: it takes no writes, it is a standby: name the primary in DATABASE_URL, "+
			"or all servers and target_session_attrs=read-write", ErrUnsuitable)
	case readOnly:
		return fmt.Errorf("%w: it takes no writes, default_transaction_read_only is on: "+
			"ALTER DATABASE, ALTER ROLE or ALTER SYSTEM … RESET default_transaction_read_only", ErrUnsuitable)
	}
	return nil
}

// SecureSession sets in a new connection what SetSession can't. After an error the connection
// must not be used: ErrUnsuitable, with what to do, where no setting makes the database safe.
func SecureSession(ctx context.Context, conn *pgx.Conn) error { return settings(nil).secure(ctx, conn) }

// secure is SecureSession, and gives the session its settings. Behind a pooler it checks that the
// session has them.
func (s settings) secure(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout) // the pool itself sets no bound
	defer cancel()
	var own bool
	var encoding, role, durability string
	var life ServerLife
	names := slices.Sorted(maps.Keys(s))
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = s[name]
	}
	// Without a name for the statement: a pooler may give the session to another client next.
	row := conn.QueryRow(ctx, sessionSQL, pgx.QueryExecModeExec, int64(conn.PgConn().PID()), names, values)
	if err := row.Scan(&own, &encoding, &role, &durability, nil, nil, &life.History, &life.Start); err != nil {
		return fmt.Errorf("set up session: %w", err)
	}
	if own {
		conn.PgConn().CustomData()[lifeKey] = life
		return checkSession(encoding, role)
	}
	usePooler(conn, durability)
	return errors.Join(checkSession(encoding, role), s.check(ctx, conn))
}

// checkSession returns ErrUnsuitable, with what to do, where no session of the database is safe.
func checkSession(encoding, role string) error {
	var faults []error
	if encoding != "UTF8" {
		faults = append(faults, fmt.Errorf("%w: it is encoded in %s, which can't hold every description: "+
			"create another one with ENCODING 'UTF8' and restore into that", ErrUnsuitable, encoding))
	}
	if role != "origin" {
		faults = append(faults, fmt.Errorf("%w: session_replication_role is %s, so that no trigger enforces the rules of the bank: "+
			"ALTER DATABASE or ALTER ROLE … RESET session_replication_role", ErrUnsuitable, role))
	}
	return errors.Join(faults...)
}
