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

// ErrUnsuitable is returned for a database that no session of ours can make safe.
var ErrUnsuitable = errors.New("unsuitable database")

// sessionParams are what the statements stand on, whatever the server, the database or
// the role are told to do. A session that has a setting of its own keeps it also when
// another one is loaded into the running server: one that only found a good value does not.
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
	"row_security":                   "on", // off refuses every statement of a role that the schema's policies are for
	"idle_session_timeout":           "0",  // the pool gives idle connections back itself
}

// SetSession has every connection made from cfg say what Passbook needs of its session.
// A search_path in the URL stays. After is to be called with each new connection.
func SetSession(cfg *pgx.ConnConfig, application string) {
	cfg.RuntimeParams["application_name"] = application
	maps.Copy(cfg.RuntimeParams, sessionParams)
	if cfg.RuntimeParams["search_path"] == "" {
		cfg.RuntimeParams["search_path"] = "public, pg_temp"
	}
}

// sessionSQL sets what a promise stands on, always. synchronous_commit: a 202 says that
// the job is on disk; the stronger remote_apply stays. session_replication_role: in any
// other role the triggers that hold the rules of the bank are off; not each role may set it.
// transaction_timeout, since Postgres 17, would end an archive's or a migration's step;
// statements have bounds of their own.
//
// One row: the encoding of the database, the role that the session is left with, and the
// server's life.
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

// unsafeSQL finds what no session can set, and a 202 stands on all the same.
//
// A row for each setting that is off: its name.
const unsafeSQL = `SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'`

// warnOfUnsafe logs the settings with which a crash of the server's machine loses or
// damages what was committed.
func warnOfUnsafe(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	rows, _ := pool.Query(ctx, unsafeSQL) // CollectRows returns its error
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("ask for the server's settings: %w", err)
	}
	for _, name := range names {
		log.Warn("a crash of Postgres's machine loses accepted jobs: turn the setting on", "setting", name)
	}
	return nil
}

// Queryer is a connection, or a pool of them.
type Queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// CheckWrites answers ErrUnsuitable, with what to do, for a database that takes no writes.
func CheckWrites(ctx context.Context, db Queryer) error {
	const sql = `SELECT current_setting('transaction_read_only') = 'on', pg_is_in_recovery()`
	var readOnly, standby bool
	if err := db.QueryRow(ctx, sql).Scan(&readOnly, &standby); err != nil {
		return fmt.Errorf("ask whether Postgres takes writes: %w", err)
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

// SecureSession sets in a new connection what SetSession can't. ErrUnsuitable, with what
// to do, for a database in which that is not enough: the connection must not be used.
func SecureSession(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout) // the pool itself would wait for ever
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
		faults = append(faults, fmt.Errorf("%w: session_replication_role is %s, so that no trigger holds the rules of the bank: "+
			"ALTER DATABASE or ALTER ROLE … RESET session_replication_role", ErrUnsuitable, role))
	}
	return errors.Join(faults...)
}
