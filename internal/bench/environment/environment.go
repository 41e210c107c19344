// Package environment sets up what a load is put on: a database, a Redis and
// processes that nothing has used before. It checks after each load that every job
// was applied once and that the ledger verifies.
package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

// Topology says which processes an environment has, and on which database.
type Topology struct {
	APIs, Workers, Partitions int
	Masters                   int      // of a Redis cluster; 0 for one server
	Metered                   bool     // what goes to Postgres and comes back is counted
	Variables                 []string // more, of each process
	Peer                      bool     // the peer in the place of Passbook; it has no Redis and no worker
	Database                  string   // that is there, and stays; empty for a copy of the template
}

// Default is Passbook as `make run` starts it.
var Default = Topology{APIs: 1, Workers: 1, Partitions: 16}

// Environment is what one load is put on.
type Environment struct {
	*Base
	Database string
	Pool     *pgxpool.Pool // uses indexes alone: a sequential scan for queued jobs would cost the load
	Token    string        // the user's access token
	Servers  []*Process    // where the load goes: apis, or the peer
	Workers  []*Process

	redis redisServers
	meter *meter    // between the processes and Postgres; nil where nothing is counted
	peaks Peaks     // of the processes that have stopped
	jobs  int       // that the loads have asked for so far
	began time.Time // the last load
	kept  bool      // the database was there before, with a history too long to verify
}

// Peaks is the most memory that each program used, in bytes.
type Peaks map[string]int64

// Run sets up an environment, puts loads on it, checks the result and removes the
// environment.
func (b *Base) Run(ctx context.Context, t Topology, loads func(*Environment) error) (peaks Peaks, err error) {
	e, err := b.prepare(ctx, t)
	if err != nil {
		return nil, err
	}
	defer func() {
		var closing error
		peaks, closing = e.close(context.WithoutCancel(ctx))
		err = errors.Join(err, closing)
	}()
	if err := e.start(ctx, t); err != nil {
		return nil, err
	}
	if err := loads(e); err != nil {
		return nil, err
	}
	return nil, e.check(ctx)
}

// prepare copies the template, or opens the database that t names.
func (b *Base) prepare(ctx context.Context, t Topology) (*Environment, error) {
	if t.Database == "" {
		b.databases++
		database := fmt.Sprintf("bench_%d", b.databases)
		if err := b.Admin(ctx, "CREATE DATABASE "+database+" TEMPLATE "+templateName); err != nil {
			return nil, err
		}
		return b.Connect(ctx, database)
	}
	e, err := b.Connect(ctx, t.Database)
	if err != nil {
		return nil, err
	}
	e.kept = true
	if err := e.Pool.QueryRow(ctx, `SELECT count(*) FROM jobs`).Scan(&e.jobs); err != nil {
		e.Pool.Close()
		return nil, err
	}
	return e, nil
}

// Connect opens a database as a serving process does, without any process, and logs
// the user in. The caller closes the pool.
func (b *Base) Connect(ctx context.Context, database string) (*Environment, error) {
	pool, err := postgres.Open(ctx, postgres.Config{
		URL: b.DatabaseURL(database), MaxConns: 2, Application: "passbook-bench", Serving: true,
	})
	if err != nil {
		return nil, err
	}
	service, err := auth.New(pool, auth.Config{Keys: []auth.Key{b.Key}})
	if err != nil {
		pool.Close()
		return nil, err
	}
	tokens, err := service.LogIn(ctx, email, b.password)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &Environment{Base: b, Database: database, Pool: pool, Token: tokens.AccessToken, peaks: Peaks{}}, nil
}

// start starts the processes.
func (e *Environment) start(ctx context.Context, t Topology) (err error) {
	if t.Peer {
		return e.startPeer(ctx)
	}
	if t.APIs == 0 {
		return nil
	}
	if e.redis, err = startRedis(ctx, t.Masters, !e.Unflushed); err != nil {
		return err
	}
	if t.Metered {
		if e.meter, err = startMeter(ctx, e.DatabaseURL(e.Database)); err != nil {
			return err
		}
	}
	if err := e.startWorkers(ctx, t); err != nil {
		return err
	}
	for range t.APIs {
		api, err := startProcess(ctx, e.program("api"), nil, e.processVariables(t))
		if err != nil {
			return err
		}
		e.Servers = append(e.Servers, api)
	}
	return nil
}

func (e *Environment) startPeer(ctx context.Context) error {
	// The peer's jobs are never queued, which Passbook's rules forbid; check enables the rules again.
	if _, err := e.Pool.Exec(ctx, `ALTER TABLE jobs DISABLE TRIGGER jobs_enter_queue; ALTER TABLE transactions DISABLE TRIGGER transactions_rules`); err != nil {
		return err
	}
	const noRedis = "redis://127.0.0.1:1" // the peer reads the api's variables, but uses no Redis
	peer, err := startProcess(ctx, e.program("bench"), append([]string{"peer"}, e.Peer.Args()...), e.variables(e.DatabaseURL(e.Database), noRedis, 1))
	if err != nil {
		return err
	}
	e.Servers = []*Process{peer}
	return nil
}

func (e *Environment) startWorkers(ctx context.Context, t Topology) error {
	for range t.Workers {
		worker, err := startProcess(ctx, e.program("worker"), nil, e.processVariables(t))
		if err != nil {
			return err
		}
		e.Workers = append(e.Workers, worker)
	}
	return nil
}

// processVariables are those of an api and of a worker.
func (e *Environment) processVariables(t Topology) []string {
	database := e.DatabaseURL(e.Database)
	if e.meter != nil {
		database = e.meter.url
	}
	return append(e.variables(database, e.redis.url(), t.Partitions), t.Variables...)
}

// Stop stops the processes in the order of `make run`, and notes their memory. When it returns
// without an error, Postgres has counted all that they did.
func (e *Environment) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range slices.Concat(e.Servers, e.Workers) {
		peak, err := PeakMemory(p.PID())
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", p.Name, err, p.log())
		}
		e.peaks[p.Name] = max(e.peaks[p.Name], peak)
		errs = append(errs, err, p.stop(ctx))
	}
	e.Servers, e.Workers = nil, nil
	if e.meter != nil {
		errs = append(errs, e.meter.close())
	}
	return errors.Join(append(errs, e.awaitNoBackends(ctx))...)
}

// close stops the processes and drops the database.
func (e *Environment) close(ctx context.Context) (Peaks, error) {
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	errs := []error{e.Stop(ctx), e.redis.remove(ctx)}
	e.Pool.Close()
	if !e.kept {
		errs = append(errs, e.Admin(ctx, "DROP DATABASE "+e.Database+" WITH (FORCE)"))
	}
	return e.peaks, errors.Join(errs...)
}

// check fails unless every job that the loads asked for was applied once, and the
// ledger verifies.
func (e *Environment) check(ctx context.Context) error {
	const sql = `SELECT count(*), count(*) FILTER (WHERE status = 'succeeded'), count(seq) FROM job_states`
	pool, err := e.OpenDatabase(ctx, e.Database, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	// Without statistics of the new jobs the planner reads a history of 100,000,000 rows whole.
	const byIndex = `SET enable_hashjoin = off; SET enable_mergejoin = off`
	if _, err := pool.Exec(ctx, byIndex); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	var jobs, succeeded, posted int
	if err := pool.QueryRow(ctx, sql).Scan(&jobs, &succeeded, &posted); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if _, err := pool.Exec(ctx, `RESET enable_hashjoin; RESET enable_mergejoin`); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if jobs != e.jobs || succeeded != e.jobs || posted != e.jobs {
		return fmt.Errorf("wrong: of %d jobs asked for %d are there, %d succeeded, %d are in the history", e.jobs, jobs, succeeded, posted)
	}
	if e.kept {
		return nil
	}
	if _, err := pool.Exec(ctx, `ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_enter_queue; ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_rules`); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	var wrong []string
	_, err = ledger.Verify(ctx, pool, func(mismatch string) { wrong = append(wrong, mismatch) }, func(ledger.Verification) {})
	if err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("wrong: %s", strings.Join(wrong, "; "))
	}
	return nil
}
