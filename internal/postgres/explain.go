package postgres

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrMisconfigured is returned where the database URL does not fit its server, so that waiting
// does not help.
var ErrMisconfigured = errors.New("the database URL does not fit its server")

// Explain returns ErrMisconfigured, with what is wrong and what to change, if every further
// attempt to connect would return the error err too. Otherwise it returns err itself.
func Explain(err error) error {
	if fault := explain(err, true); fault != nil {
		return fault
	}
	return err
}

// ExplainDirect is Explain for what can't go through a pooler. If a pooler has refused the connection
// because of a parameter of its start, it returns what CheckDirect returns.
func ExplainDirect(err error, what, instead string) error {
	refusal, ok := errors.AsType[*pgconn.PgError](err)
	if ok && refusal.Code == protocolViolation && strings.Contains(refusal.Message, startParameter) {
		return poolerFault(what, instead)
	}
	return Explain(err)
}

// explain returns nil if another attempt may succeed. unknown says that a host without an
// address counts as wrong, because it has had none for unknownHost.
func explain(err error, unknown bool) error {
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return nil
	}
	if sentence := sentenceOf(failed.Unwrap(), unknown); sentence != "" {
		return fmt.Errorf("%w: %s", ErrMisconfigured, sentence)
	}
	return nil
}

// sentenceOf returns what is wrong and what to change. It returns an empty string unless every
// part of err is permanent. Of several parts it explains the last: pgx tries a host with and
// without TLS, and the server may refuse the first attempt only because of its TLS.
func sentenceOf(err error, unknown bool) (sentence string) {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, part := range several.Unwrap() {
			if sentence = sentenceOf(part, unknown); sentence == "" {
				return ""
			}
		}
		return sentence
	}
	switch err := err.(type) { //nolint:errorlint // it looks at each layer
	case nil:
		return ""
	case *pgconn.PgError:
		return sentenceOfRefusal(err)
	case *net.DNSError:
		if err.IsNotFound && unknown {
			return fmt.Sprintf("no host has the name %q: correct it", err.Name)
		}
		return ""
	case *tls.CertificateVerificationError:
		return fmt.Sprintf("the server's certificate is not trusted (%v): correct sslmode, sslrootcert or the host's name", err)
	case tls.AlertError:
		return fmt.Sprintf("the server refuses the TLS connection (%v): correct sslmode, sslcert or sslkey", err)
	case tls.RecordHeaderError:
		return fmt.Sprintf("the server does not speak TLS (%v): correct sslmode, sslnegotiation or the port", err)
	}
	if err.Error() == "server refused TLS connection" { // pgconn has no type for it
		return "the server takes no TLS connections: correct sslmode, or turn ssl on in the server"
	}
	return sentenceOf(errors.Unwrap(err), unknown)
}

// sentenceOfRefusal returns why Postgres, or a pooler before it, refuses a connection, and what
// to change. The server's message names the user, database or parameter, and never a password.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func sentenceOfRefusal(refusal *pgconn.PgError) string {
	advice := map[string]string{
		"28000": "correct the user or sslmode, or allow the connection in pg_hba.conf",
		"28P01": "correct the user or the password",
		"3D000": "correct the database's name, or create it",
		"42501": "grant the user what it lacks, or take the parameter out of the URL",
		"42704": "correct the parameter, or take it out of the URL",
		"22023": "correct the parameter, or take it out of the URL",
		"55P02": "take the parameter out of the URL",
	}[refusal.Code]
	if refusal.Code == protocolViolation {
		advice = adviceOfPooler(refusal.Message)
	}
	if advice == "" {
		return ""
	}
	return fmt.Sprintf("%s: %s", refusal.Message, advice)
}

// protocolViolation is the code of everything that PgBouncer before 1.19 refuses, also where its server
// is away. Postgres refuses no connection with it.
const protocolViolation = "08P01"

// startParameter is in the message about a parameter that PgBouncer refuses.
const startParameter = "startup parameter"

// poolerAdvice says what to change, by a part of the message. The messages are PgBouncer's own, or
// those with which the server has refused PgBouncer's connection.
// https://github.com/pgbouncer/pgbouncer/blob/pgbouncer_1_18_0/src/client.c
var poolerAdvice = []struct{ part, advice string }{
	{startParameter, "name the parameter in the pooler's ignore_startup_parameters or take it out of the URL"},
	{"authentication failed", "correct the user or the password, in the URL or in the pooler's auth_file"},
	{"no such user", "correct the user, or name it in the pooler's auth_file"},
	{"no such database", "correct the database's name, or name it in the pooler's [databases]"},
	{"SSL required", "correct sslmode: the pooler takes TLS connections only"},
	{"TLS", "correct sslmode: the pooler takes TLS connections only"},
	{"wrong password type", "correct the password in the pooler's auth_file"},
	{"does not exist", "correct the user or the database's name, or create it"},
	{"pg_hba.conf", "allow the pooler's connection in pg_hba.conf"},
	{"is not permitted to log in", "allow the role to log in"},
	{"permission denied", "grant the user what it lacks"},
}

// adviceOfPooler returns an empty string if another attempt may succeed.
func adviceOfPooler(message string) string {
	for _, known := range poolerAdvice {
		if strings.Contains(message, known.part) {
			return known.advice
		}
	}
	return ""
}
