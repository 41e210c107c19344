package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// readOnly is read_only_sql_transaction: the server is a standby, or its configuration allows
// no writes.
const readOnly = "25006"

// IsDataFault reports whether Postgres refused the values of a statement, so that it will
// refuse the same statement again: a constraint, a value out of range, an exception of a
// trigger. Any other error (no connection, shutdown, no space, a lock not granted, a deadlock,
// an unexpected schema) is temporary, or concerns other statements too.
//
// The classes are those of https://www.postgresql.org/docs/15/errcodes-appendix.html.
func IsDataFault(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "21", "22", "23", "2F", "38", "39", "44", "54", "P0":
		return true
	}
	return false
}

// isTransient reports whether Postgres undid the transaction in favour of another one, so that
// it can run again: a serialization failure or a deadlock.
func isTransient(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "40001" || pg.Code == "40P01")
}

// IsDown reports whether err says that Postgres serves no client now: there is no connection, or
// the server stops, starts, is full or is a standby. What was sent may have been committed.
func IsDown(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err != nil
	}
	switch pg.Code {
	case "57014": // query_canceled: a statement that took too long
		return false
	case readOnly:
		return true
	}
	switch pg.Code[:2] {
	case "08", "53", "57", "58":
		return true
	}
	return false
}

// IsUnavailable reports whether err says that Postgres is down or was too busy, rather than
// that the statement is wrong.
func IsUnavailable(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "57014" || pg.Code[:2] == "40" || pg.Code[:2] == "55") {
		return true
	}
	return IsDown(err)
}

// IsTimeout reports whether Postgres ended the statement because it took too long.
func IsTimeout(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "57014"
}
