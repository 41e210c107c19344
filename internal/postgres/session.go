package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"
)

// ErrUnsuitable is returned for a database that no session of ours can make safe.
var ErrUnsuitable = errors.New("unsuitable database")

// sessionParams are what the statements stand on, whatever the server, the database or
// the role are told to do. A session that has a setting of its own keeps it also when
// another one is loaded into the running server: one that only found a good value does not.
// https://www.postgresql.org/docs/current/config-setting.html
var sessionParams = map[string]string{
	"client_encoding":               "UTF8",
	"timezone":                      "UTC",
	"datestyle":                     "ISO, MDY",
	"intervalstyle":                 "postgres",
	"bytea_output":                  "hex",
	"standard_conforming_strings":   "on",
	"transform_null_equals":         "off",
	"default_transaction_isolation": "read committed", // what the statements are written for
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
//
// One row: the encoding of the database, and the role that the session is left with.
const sessionSQL = `
	SELECT current_setting('server_encoding'),
		CASE WHEN has_parameter_privilege('session_replication_role', 'SET')
			THEN set_config('session_replication_role', 'origin', false)
			ELSE current_setting('session_replication_role')
		END,
		set_config('synchronous_commit',
			CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)`

// SecureSession sets in a new connection what SetSession can't. ErrUnsuitable, with what
// to do, for a database in which that is not enough: the connection must not be used.
func SecureSession(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout) // the pool itself would wait for ever
	defer cancel()
	var encoding, role, durability string
	if err := conn.QueryRow(ctx, sessionSQL).Scan(&encoding, &role, &durability); err != nil {
		return fmt.Errorf("set up session: %w", err)
	}
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
