package environment

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Counts are what the servers and the meter have counted so far. Redis counts a round trip for
// each time that it reads from a client.
type Counts struct {
	Jobs                                          int   // that the loads have asked for
	ToPostgres, FromPostgres, PostgresTrips       int64 // bytes, and round trips; 0 without a meter
	ToRedis, FromRedis, RedisTrips, RedisCommands int64
	Flushes                                       int64 // of Postgres's log
}

// ReadCounts reads them. Those of flushes are complete after Stop alone: a backend of Postgres
// reports them once a second, and when it ends.
func (e *Environment) ReadCounts(ctx context.Context) (c Counts, err error) {
	c.Jobs = e.jobs
	if e.meter != nil {
		c.ToPostgres, c.FromPostgres, c.PostgresTrips = e.meter.sent.Load(), e.meter.received.Load(), e.meter.trips.Load()
	}
	info, err := e.RedisInfo(ctx)
	if err != nil {
		return Counts{}, err
	}
	c.ToRedis, c.FromRedis = info["total_net_input_bytes"], info["total_net_output_bytes"]
	c.RedisTrips, c.RedisCommands = info["total_reads_processed"], info["total_commands_processed"]
	c.Flushes, err = e.flushes(ctx)
	return c, err
}

// flushes is how often Postgres has flushed its log.
func (e *Environment) flushes(ctx context.Context) (n int64, err error) {
	const (
		until17 = `SELECT wal_sync FROM pg_stat_wal`
		since18 = `SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal'`
	)
	var version int
	if err := e.Pool.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return 0, fmt.Errorf("count flushes: %w", err)
	}
	sql := until17
	if version >= 180_000 {
		sql = since18
	}
	if err := e.Pool.QueryRow(ctx, sql).Scan(&n); err != nil {
		return 0, fmt.Errorf("count flushes: %w", err)
	}
	return n, nil
}

// RedisInfo is the sum over all servers of every number in their INFO.
func (e *Environment) RedisInfo(ctx context.Context) (info map[string]int64, err error) {
	err = e.redis.ask(func(clients []redis.UniversalClient) error {
		info, err = sumInfo(ctx, clients)
		return err
	})
	return info, err
}

// Log is what Postgres's log has taken since the last checkpoint, which each load begins with:
// the bytes of records, and those of pages that it wrote whole because they changed for the
// first time since the checkpoint.
func (e *Environment) Log(ctx context.Context) (records, pages int64, err error) {
	pool, err := e.OpenDatabase(ctx, e.Database, 1)
	if err != nil {
		return 0, 0, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS pg_walinspect SCHEMA pg_catalog`); err != nil {
		return 0, 0, fmt.Errorf("read Postgres's log (pg_walinspect comes with its server package): %w", err)
	}
	const sql = `
		SELECT sum(record_size)::bigint, sum(fpi_size)::bigint
		FROM pg_get_wal_stats((SELECT redo_lsn FROM pg_control_checkpoint()), pg_current_wal_flush_lsn())`
	if err := pool.QueryRow(ctx, sql).Scan(&records, &pages); err != nil {
		return 0, 0, fmt.Errorf("read Postgres's log: %w", err)
	}
	return records, pages, nil
}

// Kept is how much disk the jobs and their outcomes take, with their indexes, in bytes. To give
// back first what was only reserved needs that no process works.
func (e *Environment) Kept(ctx context.Context, giveBack bool) (kept int64, err error) {
	pool, err := e.OpenDatabase(ctx, e.Database, 1)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	if giveBack {
		if _, err := pool.Exec(ctx, `VACUUM jobs, transactions, rejections`); err != nil {
			return 0, fmt.Errorf("vacuum: %w", err)
		}
	}
	const sql = `SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest(ARRAY['jobs', 'transactions', 'rejections']) name`
	if err := pool.QueryRow(ctx, sql).Scan(&kept); err != nil {
		return 0, fmt.Errorf("read how large the tables are: %w", err)
	}
	return kept, nil
}

// Backends are Postgres's processes that serve a program, "api" or "worker".
func (e *Environment) Backends(ctx context.Context, program string) (pids []int, err error) {
	const sql = `SELECT coalesce(array_agg(pid::bigint), '{}') FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'passbook-' || $2::text || '%'`
	if err := e.Pool.QueryRow(ctx, sql, e.Database, program).Scan(&pids); err != nil {
		return nil, fmt.Errorf("list the connections of %s: %w", program, err)
	}
	return pids, nil
}

// awaitNoBackends waits until Postgres has ended the connections of processes that have stopped.
func (e *Environment) awaitNoBackends(ctx context.Context) error {
	const tick = 10 * time.Millisecond
	const sql = `SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'passbook-%' AND application_name <> 'passbook-bench'`
	for {
		var open int
		if err := e.Pool.QueryRow(ctx, sql, e.Database).Scan(&open); err != nil {
			return fmt.Errorf("wait for Postgres to end connections: %w", err)
		}
		if open == 0 {
			return nil
		}
		if err := Sleep(ctx, tick); err != nil {
			return fmt.Errorf("wait for Postgres to end %d connections: %w", open, err)
		}
	}
}
