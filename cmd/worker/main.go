// Command worker applies accepted jobs.
//
//	worker                       work
//	worker verify                check the whole ledger against itself
//	worker replay JOB_ID …       put failed jobs back in line
//	worker archive -before DATE  move the jobs that finished before then to the archive
//
// It is configured by its environment alone; README.md lists the variables.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ops"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		cfg, err := config.LoadWorker(getenv)
		if err != nil {
			return err
		}
		return work(ctx, cfg, ops.NewLogger(stdout, cfg.Log.Level, cfg.Log.JSON))
	}
	cfg, err := config.LoadDatabase(getenv)
	switch {
	case args[0] == "verify" && len(args) == 1:
		if err != nil {
			return err
		}
		return verify(ctx, cfg.DatabaseURL, stdout, stderr)
	case args[0] == "replay" && len(args) > 1:
		if err != nil {
			return err
		}
		return replay(ctx, cfg.DatabaseURL, args[1:], stdout)
	case args[0] == "archive" && len(args) == 3 && args[1] == "-before":
		if err != nil {
			return err
		}
		return archive(ctx, cfg.DatabaseURL, args[2], stdout, stderr)
	}
	return fmt.Errorf("unknown arguments %q; usage: worker [verify | replay JOB_ID … | archive -before DATE]", args)
}
