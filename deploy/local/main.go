// Command local runs all of Passbook on this machine: a Postgres and a Redis of
// its own, the api and the worker. `make run` starts it.
//
//	local         run until Ctrl-C
//	local clean   delete the data of earlier runs
//
// It runs in the root of the repository, and keeps everything in .local.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/passbook/passbook/internal/test/local"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the process at once; the supervisors then end the servers.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "local:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, out *os.File) error {
	switch {
	case len(args) == 0:
		p, err := readPlan(getenv, ".local")
		if err != nil {
			return err
		}
		return up(ctx, p, out)
	case len(args) == 1 && args[0] == "clean":
		return clean(ctx, ".local")
	}
	return fmt.Errorf("unknown arguments %q; usage: local [clean]", args)
}

// clean deletes the data of both servers; it refuses while a server runs.
func clean(ctx context.Context, dir string) error {
	var errs []error
	for _, name := range []string{"postgres", "redis"} {
		errs = append(errs, local.Remove(ctx, filepath.Join(dir, name)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, "jwt_keys"))
}
