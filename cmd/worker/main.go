// Command worker applies accepted jobs, and has the commands of operators.
//
//	worker                               work
//	worker verify                        check the whole ledger against itself
//	worker queues                        show each partition's queue
//	worker jobs failed                   list the failed jobs
//	worker jobs replay ID…               queue failed jobs again
//	worker accounts show NUMBER          show an account and what it waits for
//	worker accounts freeze NUMBER        have its jobs rejected
//	worker accounts unfreeze NUMBER      have its jobs applied again
//	worker accounts close NUMBER         take no more jobs, for good
//	worker healthcheck                   ask the worker that runs here whether it is ready
//	worker archive --before DATE         move the jobs that finished before then to the archive
//
// Its environment alone configures it; docs/operations.md lists the variables and the commands.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ops"
)

func main() {
	os.Exit(boot.Main("worker", os.Stderr, func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	}))
}

// commands are what the command line may ask for.
type commands struct {
	Version kong.VersionFlag `help:"Print the version and end."`

	Work     workCommand      `cmd:"" default:"1" hidden:""`
	Verify   verifyCommand    `cmd:"" help:"Check the whole ledger against itself. Exits 1 at any mismatch."`
	Queues   queuesCommand    `cmd:"" help:"Show each partition's queue: its jobs and tasks, who serves it, and what is wrong."`
	Jobs     jobsCommands     `cmd:"" help:"List failed jobs, or queue them again."`
	Accounts accountsCommands `cmd:"" help:"Show, freeze, unfreeze or close an account."`
	Archive  archiveCommand   `cmd:"" help:"Move old jobs to the archive."`

	Healthcheck healthcheckCommand `cmd:"" help:"Ask the worker that runs here whether it is ready. Exits 1 where it is not."`
}

// run writes results to stdout, and the progress of a long command to stderr.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	command, err := boot.Command("worker", "Applies accepted jobs. Without a command it works until SIGTERM.", &commands{}, args, stdout, stderr)
	if command == nil {
		return err
	}
	return command.Run(&invocation{ctx: ctx, getenv: getenv, stdout: stdout, stderr: stderr})
}

// invocation is what every command runs with.
type invocation struct {
	ctx            context.Context //nolint:containedctx // a command's method takes no other argument
	getenv         func(string) string
	stdout, stderr io.Writer
}

type workCommand struct{}

// Run works until the context ends.
func (workCommand) Run(i *invocation) error {
	cfg, err := config.LoadWorker(i.getenv)
	if err != nil {
		return err
	}
	log := ops.NewLogger(i.stdout, cfg.Log.Level, cfg.Log.JSON)
	return boot.Ended(log, work(i.ctx, cfg, log))
}

type healthcheckCommand struct{}

// Run asks the operator's port.
func (healthcheckCommand) Run(i *invocation) error {
	addr, err := config.LoadOpsAddr(i.getenv, config.WorkerOpsAddr)
	if err != nil {
		return err
	}
	return boot.CheckHealth(i.ctx, addr)
}

// open opens the database for a command.
func (i *invocation) open() (*pgxpool.Pool, error) {
	cfg, err := config.LoadDatabase(i.getenv)
	if err != nil {
		return nil, err
	}
	return boot.OpenForOperator(i.ctx, cfg.DatabaseURL)
}

// say writes a line of the result.
func (i *invocation) say(format string, args ...any) {
	fmt.Fprintf(i.stdout, format+"\n", args...)
}
