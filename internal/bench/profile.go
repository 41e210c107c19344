package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
)

// profileSettings say what to take profiles of.
type profileSettings struct {
	settings
	accounts int
	span     time.Duration
	load     string // a name in profiled
}

// profiled are the loads to take profiles of, by their names. Each sends orders once.
var profiled = map[string]func(context.Context, *environment.Environment, []load.Order) error{
	"jobs": func(ctx context.Context, e *environment.Environment, orders []load.Order) error {
		_, err := e.Put(ctx, orders)
		return err
	},
	"wait": func(ctx context.Context, e *environment.Environment, orders []load.Order) error {
		_, err := e.Send(ctx, orders, nil, environment.Connections, (*load.Connection).PostAndWait)
		return err
	},
	"overload": func(ctx context.Context, e *environment.Environment, orders []load.Order) error {
		const rate = 12_000 // requests a second, some three times what two cores take
		_, err := e.Flood(ctx, orders, rate)
		return err
	},
}

func readProfileSettings(args []string) (profileSettings, error) {
	s := profileSettings{settings: settings{rounds: 1, Config: environment.Config{Scale: 1}}}
	flags := flag.NewFlagSet("bench profile", flag.ContinueOnError)
	flags.IntVar(&s.accounts, "accounts", manyAccounts, "accounts that the load goes to; 1 is one hot account")
	flags.DurationVar(&s.span, "for", 15*time.Second, "how long to profile")
	flags.StringVar(&s.load, "load", "jobs", "the load: jobs, wait (clients that wait for their jobs), or overload")
	flags.StringVar(&s.folder, "out", ".local/profiles", "folder of the profiles")
	s.RegisterPrograms(flags)
	if err := flags.Parse(args); err != nil {
		return profileSettings{}, err
	}
	if s.accounts < 1 || s.accounts > environment.AllAccounts || s.span < time.Second {
		return profileSettings{}, fmt.Errorf("-accounts is from 1 to %d, and -for at least a second", environment.AllAccounts)
	}
	if profiled[s.load] == nil {
		return profileSettings{}, fmt.Errorf("no load %q", s.load)
	}
	return s, nil
}

// profile writes api.pprof and worker.pprof of a load of 64 connections.
func profile(ctx context.Context, s profileSettings) (err error) {
	r, err := startMeasurement(ctx, s.settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(context.WithoutCancel(ctx))) }()
	if err := os.MkdirAll(s.folder, 0o755); err != nil { //nolint:gosec // readable by all users
		return fmt.Errorf("make the folder of the profiles: %w", err)
	}
	return r.newPass(0).in(ctx, environment.Default, func(e *environment.Environment) error {
		e.Say("Profiling for %v.", s.span)
		return saveProfiles(ctx, e, s)
	})
}

// saveProfiles sends loads, one after another, until the profiles are written.
func saveProfiles(ctx context.Context, e *environment.Environment, settings profileSettings) error {
	const jobs = 10_000 // in each load
	profiling, cancel := context.WithCancel(ctx)
	defer cancel()
	var profiles errgroup.Group
	for _, p := range slices.Concat(e.Servers, e.Workers) {
		profiles.Go(func() error {
			return saveProfile(profiling, p, settings.span, filepath.Join(settings.folder, p.Name+".pprof"))
		})
	}
	taken := make(chan error, 1)
	go func() { taken <- profiles.Wait() }()
	for random := load.Random(0); ; {
		if err := profiled[settings.load](ctx, e, load.EvenOrders(random, jobs, settings.accounts)); err != nil {
			cancel()
			return errors.Join(err, <-taken)
		}
		select {
		case err := <-taken:
			if err == nil {
				e.Say("Profiles of api and worker are in %s; look at one with: go tool pprof -http=: FILE", settings.folder)
			}
			return err
		default:
		}
	}
}

// saveProfile has a process profile its CPU for a span, and keeps the profile.
func saveProfile(ctx context.Context, p *environment.Process, span time.Duration, path string) error {
	taken, err := p.Operator(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(span.Seconds())))
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, taken, 0o644); err != nil { //nolint:gosec // readable by all users
		return fmt.Errorf("save profile: %w", err)
	}
	return nil
}
