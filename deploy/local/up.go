package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/passbook/passbook/internal/test/local"
)

const (
	module    = "github.com/passbook/passbook"
	readyWait = time.Minute
	readyTick = 50 * time.Millisecond
	askWait   = 2 * time.Second
	stopWait  = 30 * time.Second // for each process
)

// stack is the plan with the processes that run so far.
type stack struct {
	plan
	out  *os.File
	runs []running // in the order of the start
}

// running is a process that local has started.
type running struct {
	name string
	done <-chan struct{}
	stop func(ctx context.Context) error
}

// up starts everything, prints the addresses, and stops everything in order when ctx ends
// or a process ends.
func up(ctx context.Context, p plan, out *os.File) (err error) {
	s := &stack{plan: p, out: out}
	defer func() { err = errors.Join(err, s.stop(context.WithoutCancel(ctx))) }()
	for _, step := range []func(context.Context) error{
		s.checkPorts, s.makeDir, s.build, s.startPostgres, s.startRedis, s.makeKeys, s.migrate, s.startWorker, s.startAPI, s.awaitReady,
	} {
		err := step(ctx)
		if ctx.Err() != nil {
			return nil // Ctrl-C: the error of a step that it interrupted is no fault
		}
		if err != nil {
			return err
		}
	}
	s.announce()
	return s.watch(ctx)
}

func (s *stack) say(sentence string) { fmt.Fprintln(s.out, sentence) }

func (s *stack) makeDir(context.Context) error {
	return os.MkdirAll(s.bin(""), 0o755) //nolint:gosec // the servers' user passes through it
}

func (s *stack) bin(name string) string { return filepath.Join(s.dir, "bin", name) }

func (s *stack) build(ctx context.Context) error {
	s.say("Building api and worker; the first time takes a minute or two.")
	// Without the version's stamp: git refuses to give it to another user.
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", s.bin(""), module+"/cmd/api", module+"/cmd/worker") //nolint:gosec // our own folder
	build.Stdout, build.Stderr = s.out, s.out
	if err := build.Run(); err != nil {
		return fmt.Errorf("go build: %w", err)
	}
	return nil
}

func (s *stack) startPostgres(ctx context.Context) error {
	if s.databaseURL != "" {
		return nil
	}
	s.say("Starting Postgres.")
	pg, err := local.StartPostgres(ctx, local.PostgresConfig{Dir: filepath.Join(s.dir, "postgres"), Durable: true, Say: s.say})
	if err != nil {
		return err
	}
	s.databaseURL = pg.URL()
	s.runs = append(s.runs, running{name: "Postgres", done: pg.Done(), stop: pg.Stop})
	return nil
}

func (s *stack) startRedis(ctx context.Context) error {
	if s.redisURL != "" {
		return nil
	}
	s.say("Starting Redis.")
	r, err := local.StartRedis(ctx, local.RedisConfig{Dir: filepath.Join(s.dir, "redis"), Durable: true, Say: s.say})
	if err != nil {
		return err
	}
	s.redisURL = r.URL()
	s.runs = append(s.runs, running{name: "Redis", done: r.Done(), stop: r.Stop})
	return nil
}

func (s *stack) makeKeys(context.Context) (err error) {
	if s.jwtKeys == "" {
		s.jwtKeys, err = keys(filepath.Join(s.dir, "jwt_keys"))
	}
	return err
}

func (s *stack) migrate(ctx context.Context) error {
	s.say("Migrating the database.")
	p, err := s.program(ctx, "api migrate", s.apiOps, s.bin("api"), "migrate")
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}

func (s *stack) startWorker(ctx context.Context) error {
	s.say("Starting worker and api.")
	return s.startProgram(ctx, "worker", s.workerOps)
}

func (s *stack) startAPI(ctx context.Context) error {
	return s.startProgram(ctx, "api", s.apiOps)
}

func (s *stack) startProgram(ctx context.Context, name string, ops address) error {
	p, err := s.program(ctx, name, ops, s.bin(name))
	if err != nil {
		return err
	}
	s.runs = append(s.runs, running{name: name, done: p.Done(), stop: p.Stop})
	return nil
}

func (s *stack) program(ctx context.Context, name string, ops address, command ...string) (*local.Program, error) {
	return local.StartProgram(ctx, local.ProgramConfig{Name: name, Command: command, Env: s.environment(ops), Output: s.out})
}

// awaitReady waits until the api and the worker report that they are ready.
func (s *stack) awaitReady(ctx context.Context) error {
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	tick := time.NewTicker(readyTick)
	defer tick.Stop()
	for _, ops := range []address{s.workerOps, s.apiOps} {
		for !ready(ctx, ops.url("/readyz")) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("%s is not ready after %v", ops.url("/readyz"), readyWait)
			}
			if name, ended := s.ended(); ended {
				return fmt.Errorf("%s ended by itself; what it said is above", name)
			}
		}
	}
	return nil
}

func ready(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// ended returns the first process that has ended, if one has.
func (s *stack) ended() (name string, ended bool) {
	for _, r := range s.runs {
		select {
		case <-r.done:
			return r.name, true
		default:
		}
	}
	return "", false
}

// watch waits for Ctrl-C. It returns an error when a process ends by itself.
func (s *stack) watch(ctx context.Context) error {
	var watchers sync.WaitGroup
	defer watchers.Wait()
	ended, stop := context.WithCancel(ctx)
	defer stop()
	for _, r := range s.runs {
		watchers.Go(func() {
			select {
			case <-r.done:
				stop()
			case <-ended.Done():
			}
		})
	}
	<-ended.Done()
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	name, _ := s.ended()
	return fmt.Errorf("%s ended by itself; everything else was stopped", name)
}

// stop stops what runs, the last started first: api, worker, Redis, Postgres.
func (s *stack) stop(ctx context.Context) error {
	var errs []error
	for _, r := range slices.Backward(s.runs) {
		s.say("Stopping " + r.name + ".")
		ctx, cancel := context.WithTimeout(ctx, stopWait)
		errs = append(errs, r.stop(ctx))
		cancel()
	}
	return errors.Join(errs...)
}
