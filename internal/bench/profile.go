package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// profileSettings say what to take profiles of.
type profileSettings struct {
	settings
	accounts int
	span     time.Duration
}

func readProfileSettings(args []string) (profileSettings, error) {
	s := profileSettings{settings: settings{rounds: 1, scale: 1}}
	flags := flag.NewFlagSet("bench profile", flag.ContinueOnError)
	flags.IntVar(&s.accounts, "accounts", manyAccounts, "accounts that the load goes to; 1 is one hot account")
	flags.DurationVar(&s.span, "for", 15*time.Second, "how long to profile")
	flags.StringVar(&s.folder, "out", ".local/profiles", "folder of the profiles")
	if err := flags.Parse(args); err != nil {
		return profileSettings{}, err
	}
	if s.accounts < 1 || s.accounts > allAccounts || s.span < time.Second {
		return profileSettings{}, fmt.Errorf("-accounts is from 1 to %d, and -for at least a second", allAccounts)
	}
	return s, nil
}

// profile leaves api.pprof and worker.pprof of a load of 64 connections.
func profile(ctx context.Context, s profileSettings, out io.Writer) (err error) {
	r, err := newRig(ctx, s.settings, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close(context.WithoutCancel(ctx))) }()
	if err := os.MkdirAll(s.folder, 0o755); err != nil { //nolint:gosec // readable by all users
		return fmt.Errorf("make the folder of the profiles: %w", err)
	}
	pass := r.newRound(0)
	return pass.onScene(ctx, plain, func(scene *scene) error {
		r.say("Profiling for %v.", s.span)
		return scene.profile(ctx, s)
	})
}

// profile puts loads on, one after another, until the profiles are there.
func (s *scene) profile(ctx context.Context, settings profileSettings) error {
	const jobs = 10_000 // in each load
	profiling, cancel := context.WithCancel(ctx)
	defer cancel()
	var profiles errgroup.Group
	for _, p := range slices.Concat(s.doors, s.workers) {
		profiles.Go(func() error {
			return saveProfile(profiling, p.operator(), settings.span, filepath.Join(settings.folder, p.name+".pprof"))
		})
	}
	taken := make(chan error, 1)
	go func() { taken <- profiles.Wait() }()
	for random := s.seed(); ; {
		_, err := s.put(ctx, evenOrders(random, jobs, settings.accounts))
		if err != nil {
			cancel()
			return errors.Join(err, <-taken)
		}
		select {
		case err := <-taken:
			if err == nil {
				s.say("Profiles of api and worker are in %s; look at one with: go tool pprof -http=: FILE", settings.folder)
			}
			return err
		default:
		}
	}
}

// saveProfile has a process profile its CPU for a span, and keeps the profile.
func saveProfile(ctx context.Context, operator string, span time.Duration, path string) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", operator, int(span.Seconds()))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s", response.Status)
	}
	file, err := os.Create(path) //nolint:gosec // in the folder that was named
	if err != nil {
		return fmt.Errorf("save profile: %w", err)
	}
	_, err = io.Copy(file, response.Body)
	return errors.Join(err, file.Close())
}
