package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// readOnly is read_only_sql_transaction: a standby, or a server that was told to
// take no writes.
const readOnly = "25006"

// IsDataFault tells whether Postgres refused what the statement said, so that
// the same statement will be refused again: a constraint, a value out of range,
// an exception raised by a trigger. Everything else (no connection, shutdown,
// no space, a lock not granted, a deadlock, a schema not as expected) is
// Postgres's trouble or an operator's, and passes or hits everybody.
//
// The classes are those of https://www.postgresql.org/docs/15/errcodes-appendix.html.
func IsDataFault(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "21", "22", "23", "2F", "38", "39", "44", "54", "P0":
		return true
	}
	return false
}

// isTransient tells whether the transaction was undone for the sake of another
// one and may simply run again: serialization failure and deadlock.
func isTransient(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// IsDown tells whether err says that nobody gets anything from Postgres now: no
// connection, a server that stops, starts, is full or is a standby. What was
// sent may have been committed.
func IsDown(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
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

// IsUnavailable tells whether err says that Postgres could not do it now, rather
// than that it was wrong to ask: it is down, or too busy in time.
func IsUnavailable(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "57014" || pg.Code[:2] == "40" || pg.Code[:2] == "55") {
		return true
	}
	return IsDown(err)
}

// IsTimeout tells whether Postgres ended the statement because it took too long.
func IsTimeout(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "57014"
}
