// Command worker applies accepted jobs.
//
//	worker                       work
//	worker verify                check the whole ledger against itself
//	worker replay JOB_ID …       queue failed jobs again
//	worker archive -before DATE  move the jobs that finished before then to the archive
//
// Its environment alone configures it; docs/operations.md lists the variables.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ops"
)

func main() {
	os.Exit(boot.Main("worker", os.Stderr, func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	}))
}

// run writes results to stdout, and the progress of a long command to stderr.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		cfg, err := config.LoadWorker(getenv)
		if err != nil {
			return err
		}
		return work(ctx, cfg, ops.NewLogger(stdout, cfg.Log.Level, cfg.Log.JSON))
	}
	command := operatorCommand(args)
	if command == nil {
		return fmt.Errorf("unknown arguments %q; usage: worker [verify | replay JOB_ID … | archive -before DATE]", args)
	}
	cfg, err := config.LoadDatabase(getenv)
	if err != nil {
		return err
	}
	return command(ctx, cfg.DatabaseURL, stdout, stderr)
}

// operatorCommand returns the command that args name, or nil.
func operatorCommand(args []string) func(ctx context.Context, databaseURL string, stdout, stderr io.Writer) error {
	switch {
	case args[0] == "verify" && len(args) == 1:
		return verify
	case args[0] == "replay" && len(args) > 1:
		return func(ctx context.Context, databaseURL string, stdout, _ io.Writer) error {
			return replay(ctx, databaseURL, args[1:], stdout)
		}
	case args[0] == "archive" && len(args) == 3 && args[1] == "-before":
		return func(ctx context.Context, databaseURL string, stdout, stderr io.Writer) error {
			return archive(ctx, databaseURL, args[2], stdout, stderr)
		}
	}
	return nil
}
