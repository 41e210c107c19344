package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// standbyName is what a standby calls itself to its primary, which has one standby.
const standbyName = "standby"

// StartStandby starts a server that follows primary. It returns once every commit of the
// primary waits for the standby: from then on a promoted standby has all that the primary
// acknowledged, and a primary without its standby acknowledges nothing.
//
// The folder must be new. A primary has one standby.
func StartStandby(ctx context.Context, primary *Postgres, cfg PostgresConfig) (*Postgres, error) {
	pg, err := newPostgres(ctx, cfg)
	if err != nil {
		return nil, err
	}
	pg.name = "standby"
	pg.fill = func(ctx context.Context, dir string) error { return pg.follow(ctx, primary, dir) }
	if err := pg.start(ctx); err != nil {
		return nil, errors.Join(err, pg.folder.abandon())
	}
	if err := primary.waitForStandby(ctx); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start standby: %w", err), pg.Stop(stop), pg.folder.abandon())
	}
	return pg, nil
}

// Promote makes a standby take writes. Its commits then wait for no other server, and its old
// primary must not run any more.
func (pg *Postgres) Promote(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, pg.URL())
	if err != nil {
		return fmt.Errorf("promote standby: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // it has been answered
	// A pg_promote that waits holds a snapshot, and what is still to be replayed may wait for
	// that snapshot to go: 30 s.
	if _, err := conn.Exec(ctx, `SELECT pg_promote(false)`); err != nil {
		return fmt.Errorf("promote standby: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	tick := time.NewTicker(readyTick)
	defer tick.Stop()
	for replays := true; ; {
		if err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&replays); err != nil || !replays {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("promote standby: %w", context.Cause(ctx))
		}
	}
}

// follow copies the primary's data to dir, with the order to follow it. The
// password goes by a file: a command line is no place for it.
func (pg *Postgres) follow(ctx context.Context, primary *Postgres, dir string) error {
	host := primary.host.address()
	primary.mu.Lock()
	port := strconv.Itoa(primary.port)
	primary.mu.Unlock()
	pg.password = primary.password // it is in the data
	if err := pg.folder.write("password", pg.password+"\n"); err != nil {
		return err
	}
	const passFile = "primary.pass"
	if err := pg.folder.write(passFile, fmt.Sprintf("%s:%s:*:%s:%s\n", host, port, postgresUser, pg.password)); err != nil {
		return err
	}
	if err := pg.copyPrimary(ctx, primary.URL(), dir); err != nil {
		return err
	}
	settings, err := pg.folder.root.OpenFile(filepath.Join(filepath.Base(dir), "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	conninfo := "host=" + host + " port=" + port + " user=" + postgresUser + " sslmode=disable application_name=" + standbyName +
		" passfile=" + quoteConnInfo(filepath.Join(pg.folder.path, passFile))
	_, err = fmt.Fprintf(settings, "primary_conninfo = '%s'\n", strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(conninfo))
	if err := errors.Join(err, settings.Close()); err != nil {
		return err
	}
	return pg.folder.write(filepath.Join(filepath.Base(dir), "standby.signal"), "")
}

// copyPrimary makes dir a copy of the primary's data and of the WAL that the copy needs. The primary
// makes the copy: not every package of Postgres has pg_basebackup, and that of an older version
// refuses a newer server.
// https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-BASE-BACKUP
func (pg *Postgres) copyPrimary(ctx context.Context, primaryURL, dir string) error {
	const name = "base.tar"
	tar, err := pg.folder.root.Create(name)
	if err != nil {
		return err
	}
	defer pg.folder.root.Remove(name) //nolint:errcheck // Remove of the folder takes it along
	err = baseBackup(ctx, primaryURL, tar)
	if err := errors.Join(err, tar.Close(), pg.folder.give(name)); err != nil {
		return fmt.Errorf("copy the primary: %w", err)
	}
	for _, command := range [][]string{
		{"mkdir", "-m", "700", dir},
		{"tar", "-x", "-f", filepath.Join(pg.folder.path, name), "-C", dir},
	} {
		if err := pg.run(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

// baseBackup writes a server's data to w, as a tar archive.
func baseBackup(ctx context.Context, serverURL string, w io.Writer) error {
	cfg, err := pgconn.ParseConfig(serverURL)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["replication"] = "true"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it has been answered
	_, err = conn.CopyTo(ctx, archiveWriter{w}, `BASE_BACKUP (CHECKPOINT 'fast', WAL true, MANIFEST 'no')`)
	return err
}

// archiveWriter takes the messages of a base backup and writes the archive that they bring. The first
// byte is the kind of the message: d is a part of the archive.
type archiveWriter struct{ w io.Writer }

func (a archiveWriter) Write(message []byte) (int, error) {
	if len(message) == 0 || message[0] != 'd' {
		return len(message), nil
	}
	n, err := a.w.Write(message[1:])
	return n + 1, err
}

// quoteConnInfo quotes a value of a libpq connection string.
func quoteConnInfo(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

// waitForStandby has the primary wait for the standby at every commit. It says
// so only when the standby streams: before that every commit would hang.
func (pg *Postgres) waitForStandby(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	conn, err := pgx.Connect(ctx, pg.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // it has been answered
	if err := awaitReplication(ctx, conn, "state = 'streaming'"); err != nil {
		return err
	}
	for _, sql := range []string{
		`ALTER SYSTEM SET synchronous_standby_names = '` + standbyName + `'`,
		`SELECT pg_reload_conf()`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := awaitReplication(ctx, conn, "sync_state = 'sync'"); err != nil {
		return err
	}
	// The WAL sender is in sync. Whether commits wait for it is up to the checkpointer, which reads
	// the new settings before it runs a checkpoint.
	_, err = conn.Exec(ctx, `CHECKPOINT`)
	return err
}

func awaitReplication(ctx context.Context, conn *pgx.Conn, condition string) error {
	sql := `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = '` + standbyName + `' AND ` + condition + `)`
	tick := time.NewTicker(readyTick)
	defer tick.Stop()
	for {
		var holds bool
		if err := conn.QueryRow(ctx, sql).Scan(&holds); err != nil || holds {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w before replication had %s", context.Cause(ctx), condition)
		}
	}
}
