package postgres

import (
	"context"
	"errors"
	"slices"

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
// the server stops, starts, is full, is a standby or refuses the log-in. What was sent may have
// been committed. A file that can't be read (class 58) may be of one account only: isDamage of ledger.
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
	case "08", "28", "3D", "53", "57": // 28 and 3D: a log-in, as after a change of the password
		return true
	}
	return false
}

// IsUnavailable reports whether err says that Postgres is down, was too busy or could not read a file,
// rather than that the statement is wrong.
func IsUnavailable(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		if pg.Code == "57014" || slices.Contains([]string{"40", "55", "58"}, pg.Code[:2]) {
			return true
		}
	}
	return IsDown(err)
}

// IsTimeout reports whether Postgres ended the statement because it took too long.
func IsTimeout(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "57014"
}

// Reason is why a statement failed, in one word for an operator.
type Reason string

// The reasons.
const (
	Privilege     Reason = "privilege"     // the role, or the owner of a function, lacks a right
	ReadOnly      Reason = "read_only"     // the server takes no writes
	Connection    Reason = "connection"    // no connection, a log-in that is refused, or the server is stopping or starting
	Timeout       Reason = "timeout"       // the statement, or its answer, took too long
	Lock          Reason = "lock"          // a lock was not granted
	Constraint    Reason = "constraint"    // the values of the statement: IsDataFault
	Serialization Reason = "serialization" // Postgres aborted it in favour of another transaction
	Resources     Reason = "resources"     // no disk, memory or connections left, or the disk fails
	Function      Reason = "function"      // a function, table or library is missing or another version
	Other         Reason = "other"
)

// Reasons are all of them.
var Reasons = []Reason{Privilege, ReadOnly, Connection, Timeout, Lock, Constraint, Serialization, Resources, Function, Other}

// ReasonOf returns why a statement failed.
func ReasonOf(err error) Reason {
	code := SQLState(err)
	if code == "" {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || pgconn.Timeout(err) {
			return Timeout // Postgres was silent for longer than RoundTripTimeout
		}
		return Connection
	}
	if reason, found := reasonOfCode[code]; found {
		return reason
	}
	if reason, found := reasonOfClass[code[:2]]; found {
		return reason
	}
	if IsDataFault(err) {
		return Constraint
	}
	return Other
}

// reasonOfCode are the codes that have another reason than their class.
var reasonOfCode = map[string]Reason{
	"42501":  Privilege,
	readOnly: ReadOnly,
	"57014":  Timeout,  // a statement that took too long
	"25P03":  Timeout,  // a transaction that was idle for too long
	"58P01":  Function, // a library that can't be loaded
}

// reasonOfClass are the classes of https://www.postgresql.org/docs/15/errcodes-appendix.html.
var reasonOfClass = map[string]Reason{
	"08": Connection, "28": Connection, "3D": Connection, "57": Connection,
	"40": Serialization,
	"55": Lock,
	"53": Resources, "58": Resources,
	"0A": Function, "3F": Function, "42": Function,
}

// SQLState returns Postgres's code of the error; empty if the error is not Postgres's.
func SQLState(err error) string {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 {
		return ""
	}
	return pg.Code
}
