package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Behind PgBouncer in transaction mode each transaction of a connection may have another session of
// the server, and other clients use the same sessions in between. So Passbook sets nothing in them,
// and prepares no statement under a name. What a session must have comes from its role, and each
// new connection checks it. A transaction that money rests on asks for its flush itself. And no
// connection knows a server life: PgBouncer keeps it open over a crash of Postgres.

// The keys of a connection's custom data.
const (
	configKey  = "passbook.config"  // its *pgx.ConnConfig, which pgx reads at each query
	durableKey = "passbook.durable" // behind a pooler: the synchronous_commit of its transactions
)

// keepConfig keeps cfg for usePooler, which needs it once the connection is open. It must be the
// connection's own: pgx copies the one that BeforeConnect gets.
func keepConfig(cfg *pgx.ConnConfig) {
	cfg.AfterConnect = func(_ context.Context, conn *pgconn.PgConn) error {
		conn.CustomData()[configKey] = cfg
		return nil
	}
}

// usePooler makes pgx prepare no more statements under names. It still asks once for the types of a
// statement's parameters, which need no session.
func usePooler(conn *pgx.Conn, durability string) {
	data := conn.PgConn().CustomData()
	data[durableKey] = "on"
	if durability == remoteApply {
		data[durableKey] = remoteApply
	}
	if cfg, ok := data[configKey].(*pgx.ConnConfig); ok && cfg.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
}

// remoteApply is the synchronous_commit that is stronger than on.
const remoteApply = "remote_apply"

// IsPooled reports whether a pooler stands between the connection and its server.
func IsPooled(conn *pgx.Conn) bool { return conn.PgConn().CustomData()[durableKey] != nil }

// CheckDirect returns ErrUnsuitable where a pooler stands before the server. what says what needs
// sessions of its own, and instead what to name in its place.
func CheckDirect(conn *pgx.Conn, what, instead string) error {
	if !IsPooled(conn) {
		return nil
	}
	return poolerFault(what, instead)
}

func poolerFault(what, instead string) error {
	return fmt.Errorf("%w: %s can't go through a pooler (PgBouncer): %s", ErrUnsuitable, what, instead)
}

// DurableSQL, in the FROM of a statement, makes the commit wait until it is flushed, on a synchronous
// standby too where there is one. Behind a pooler another client may have turned that off in the
// session. It holds until the transaction ends.
const DurableSQL = `set_config('synchronous_commit',
	CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)`

// beginSQL begins a transaction whose commit waits until it is flushed. It is empty, for pgx's own,
// where the session itself is set so. A statement that reads can't do the same: after it, a
// transaction may not choose its isolation.
func beginSQL(conn *pgx.Conn) string {
	durable, isPooled := conn.PgConn().CustomData()[durableKey].(string)
	if !isPooled {
		return ""
	}
	return `BEGIN; SET LOCAL synchronous_commit = ` + durable
}

// settingsSQL reads settings by their names.
//
// $1 the names, as an array. One row for each: the session's role, as SQL names it, the setting's
// name, and its value without a unit.
const settingsSQL = `SELECT quote_ident(session_user), lower(name), setting FROM pg_settings WHERE lower(name) = ANY ($1::text[])`

// unchecked are settings that hold for PgBouncer's connection to the server, and not for a
// statement: over a Unix socket they read 0.
var unchecked = []string{"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"}

// check returns ErrUnsuitable, with what to do, unless the session has the settings.
func (s settings) check(ctx context.Context, conn *pgx.Conn) error {
	want := maps.Clone(startParams)
	maps.Copy(want, s)
	want["synchronous_commit"], want["transaction_timeout"] = "on", "0"
	for _, name := range unchecked {
		delete(want, name)
	}
	rows, _ := conn.Query(ctx, settingsSQL, pgx.QueryExecModeExec, slices.Collect(maps.Keys(want))) // ForEachRow returns its error
	var role, name, value string
	var wrong, repairs []string
	_, err := pgx.ForEachRow(rows, []any{&role, &name, &value}, func() error {
		if !fits(name, value, want[name]) {
			wrong = append(wrong, fmt.Sprintf("%s is %q instead of %q", name, value, want[name]))
			repairs = append(repairs, fmt.Sprintf("ALTER ROLE %s SET %s = %s", role, name, literal(name, want[name])))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("check the settings of a pooler's session: %w", err)
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	slices.Sort(repairs)
	return fmt.Errorf("%w: behind a pooler (PgBouncer) the role must have the settings, and %s. As a superuser: %s; then RECONNECT in the pooler's console",
		ErrUnsuitable, strings.Join(wrong, ", "), strings.Join(repairs, "; "))
}

// timeouts are the settings that may have any value up to the wanted one, but not 0, which is none.
var timeouts = []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}

// fits reports whether a setting may have a value.
func fits(name, value, want string) bool {
	switch {
	case slices.Contains(timeouts, name):
		have, err := strconv.Atoi(value)
		most, _ := strconv.Atoi(want) // one of this package's
		return err == nil && 0 < have && have <= most
	case name == "synchronous_commit":
		return value == want || value == remoteApply
	}
	return strings.EqualFold(strings.ReplaceAll(value, " ", ""), strings.ReplaceAll(want, " ", ""))
}

// literal writes a value for ALTER ROLE: a search_path is a list of names.
func literal(name, value string) string {
	if name == "search_path" {
		return value
	}
	return "'" + value + "'"
}

// AwaitDirect is CheckDirect for a process that starts; see Await.
func AwaitDirect(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, what, instead string) error {
	return Await(ctx, pool, log, func(ctx context.Context) error {
		return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return CheckDirect(conn.Conn(), what, instead) })
	})
}

// logPooler logs that a pooler stands before the server.
func logPooler(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if IsPooled(conn.Conn()) {
			log.Info("Postgres is behind a pooler", "hosts", hostsOf(pool.Config().ConnConfig))
		}
		return nil
	})
}
