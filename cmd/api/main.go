// Command api serves Passbook's HTTP API.
//
//	api                    serve
//	api migrate            apply the migrations and end
//	api migrate --status   show which migrations are applied and end
//	api healthcheck        ask the API that runs here whether it is ready
//
// Its environment alone configures it; docs/operations.md lists the variables.
package main

import (
	"context"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ops"
)

func main() {
	os.Exit(boot.Main("api", os.Stderr, func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	}))
}

// commands are what the command line may ask for.
type commands struct {
	Version kong.VersionFlag `help:"Print the version and end."`

	Serve   serveCommand   `cmd:"" default:"1" hidden:""`
	Migrate migrateCommand `cmd:"" help:"Apply the migrations that the database does not have, advance sequences that a restore left behind, and end."`

	Healthcheck healthcheckCommand `cmd:"" help:"Ask the API that runs here whether it is ready. Exits 1 where it is not."`
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	command, err := boot.Command("api", "Serves Passbook's HTTP API. Without a command it serves until SIGTERM.", &commands{}, args, stdout, stderr)
	if command == nil {
		return err
	}
	return command.Run(&invocation{ctx: ctx, getenv: getenv, stdout: stdout})
}

// invocation is what every command runs with.
type invocation struct {
	ctx    context.Context //nolint:containedctx // a command's method takes no other argument
	getenv func(string) string
	stdout io.Writer
}

type serveCommand struct{}

// Run serves until the context ends.
func (serveCommand) Run(i *invocation) error {
	cfg, err := config.LoadAPI(i.getenv)
	if err != nil {
		return err
	}
	log := ops.NewLogger(i.stdout, cfg.Log.Level, cfg.Log.JSON)
	return boot.Ended(log, serve(i.ctx, cfg, log))
}

type healthcheckCommand struct{}

// Run asks the operator's port.
func (healthcheckCommand) Run(i *invocation) error {
	addr, err := config.LoadOpsAddr(i.getenv, config.APIOpsAddr)
	if err != nil {
		return err
	}
	return boot.CheckHealth(i.ctx, addr)
}

type migrateCommand struct {
	Status bool `help:"Show which migrations the database has, and change nothing."`
}

// Run migrates, or shows the state of the schema.
func (c migrateCommand) Run(i *invocation) error {
	cfg, err := config.LoadDatabase(i.getenv)
	if err != nil {
		return err
	}
	if c.Status {
		return showMigrations(i.ctx, cfg.DatabaseURL, i.stdout)
	}
	return migrate(i.ctx, cfg.DatabaseURL, i.stdout)
}
