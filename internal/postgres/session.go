package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrUnsuitable is returned for a database that no session setting can make safe.
var ErrUnsuitable = errors.New("unsuitable database")

// sessionParams are the settings that the statements rely on, whatever the configuration of the
// server, the database or the role says. Each session sets them itself, also if the value is
// right already: when the server reloads its configuration, only the settings that a session has
// set itself stay as they are.
// https://www.postgresql.org/docs/current/config-setting.html
var sessionParams = map[string]string{
	"client_encoding":                "UTF8",
	"timezone":                       "UTC",
	"datestyle":                      "ISO, MDY",
	"intervalstyle":                  "postgres",
	"bytea_output":                   "hex",
	"standard_conforming_strings":    "on",
	"transform_null_equals":          "off",
	"default_transaction_isolation":  "read committed", // what the statements are written for
	"default_transaction_deferrable": "off",
	"array_nulls":                    "on",
	"row_security":                   "on", // off makes Postgres refuse every statement of a role to which a policy applies
	"idle_session_timeout":           "0",  // the pool closes idle connections itself
}

// SetSession adds to cfg the session settings that Passbook needs. A search_path in the URL
// stays. SecureSession must follow on each new connection.
func SetSession(cfg *pgx.ConnConfig, application string) {
	cfg.RuntimeParams["application_name"] = application
	maps.Copy(cfg.RuntimeParams, sessionParams)
	if cfg.RuntimeParams["search_path"] == "" {
		cfg.RuntimeParams["search_path"] = "public, pg_temp"
	}
}

// sessionSQL sets what the promises rely on:
//   - synchronous_commit is on, because a 202 says that the job is on disk. The stronger
//     remote_apply stays.
//   - session_replication_role is origin, because any other value turns off triggers. Some roles
//     may not set it.
//   - transaction_timeout, new in Postgres 17, is 0: it would end a step of an archive or of a
//     migration. Statements have their own bounds.
//
// One row: the encoding of the database, the resulting session_replication_role and
// synchronous_commit, the result of setting transaction_timeout, and the server life.
const sessionSQL = `
	SELECT current_setting('server_encoding'),
		CASE WHEN has_parameter_privilege('session_replication_role', 'SET')
			THEN set_config('session_replication_role', 'origin', false)
			ELSE current_setting('session_replication_role')
		END,
		set_config('synchronous_commit',
			CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
		CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
			THEN set_config('transaction_timeout', '0', false)
		END, ` + HistorySQL + `, ` + startSQL

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
func SecureSession(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout) // the pool itself sets no bound
	defer cancel()
	var encoding, role, durability string
	var life ServerLife
	if err := conn.QueryRow(ctx, sessionSQL).Scan(&encoding, &role, &durability, nil, &life.History, &life.Start); err != nil {
		return fmt.Errorf("set up session: %w", err)
	}
	conn.PgConn().CustomData()[lifeKey] = life
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
