package postgres

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/time/rate"
)

const (
	// awaitPause is the time between two checks while Postgres can't be reached.
	awaitPause = time.Second
	// awaitLogPause is the shortest time between two lines about the wait.
	awaitLogPause = 30 * time.Second
	// unknownHost is how long a host may have no address: a container platform may create its
	// name together with its server.
	unknownHost = 30 * time.Second
)

// Await runs a check at the start of a process. While Postgres can't be reached, it runs the
// check again every awaitPause. It returns ErrMisconfigured, with what to change, for a fault
// that waiting does not end. If the URL names several hosts, each of them must have such a fault.
func Await(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, check func(context.Context) error) error {
	return await(ctx, pool, log, unknownHost, check)
}

func await(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, unknownFor time.Duration, check func(context.Context) error) error {
	tick := time.NewTicker(awaitPause)
	defer tick.Stop()
	logs := rate.Sometimes{First: 1, Interval: awaitLogPause}
	for began := time.Now(); ; {
		err := checkInTime(ctx, check)
		if err == nil || errors.Is(err, ErrSchema) || errors.Is(err, ErrUnsuitable) {
			return err
		}
		_, refused := errors.AsType[*pgconn.ConnectError](err)
		if !refused && !IsDown(err) {
			return err
		}
		if fault := permanentFault(ctx, pool, err, time.Since(began) >= unknownFor); fault != nil {
			return fault
		}
		logs.Do(func() { log.Warn("waiting for Postgres", "hosts", hostsOf(pool.Config().ConnConfig), "error", err) })
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func checkInTime(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, RoundTripTimeout)
	defer cancel()
	return check(ctx)
}

// permanentFault explains the error of the pool's last attempt. It returns nil if another attempt
// may succeed. pgx ends an attempt at the first host that refuses the user, so permanentFault
// tries each of several hosts.
func permanentFault(ctx context.Context, pool *pgxpool.Pool, err error, unknown bool) error {
	fault := explain(err, unknown)
	hosts := eachHost(pool.Config().ConnConfig)
	if fault == nil || len(hosts) == 1 {
		return fault
	}
	for _, host := range hosts {
		conn, err := pgx.ConnectConfig(ctx, host)
		if err == nil {
			_ = conn.Close(ctx)
			return nil
		}
		if fault = explain(err, unknown); fault == nil {
			return nil
		}
	}
	return fault
}

// eachHost returns a configuration for each host of cfg, with all forms of TLS in which pgx
// tries that host.
func eachHost(cfg *pgx.ConnConfig) (hosts []*pgx.ConnConfig) {
	first := pgconn.FallbackConfig{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}
	for _, next := range append([]*pgconn.FallbackConfig{&first}, cfg.Fallbacks...) {
		if n := len(hosts); n > 0 && hosts[n-1].Host == next.Host && hosts[n-1].Port == next.Port {
			hosts[n-1].Fallbacks = append(hosts[n-1].Fallbacks, next)
			continue
		}
		host := cfg.Copy()
		host.Host, host.Port, host.TLSConfig, host.Fallbacks = next.Host, next.Port, next.TLSConfig, nil
		hosts = append(hosts, host)
	}
	return hosts
}
