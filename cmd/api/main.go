// Command api serves Passbook's HTTP API.
//
//	api           serve
//	api migrate   apply the migrations and end
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
	os.Exit(boot.Main("api", os.Stderr, func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	}))
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	switch {
	case len(args) == 0:
		cfg, err := config.LoadAPI(getenv)
		if err != nil {
			return err
		}
		return serve(ctx, cfg, ops.NewLogger(stdout, cfg.Log.Level, cfg.Log.JSON))
	case len(args) == 1 && args[0] == "migrate":
		cfg, err := config.LoadDatabase(getenv)
		if err != nil {
			return err
		}
		return migrate(ctx, cfg.DatabaseURL, stdout)
	}
	return fmt.Errorf("unknown arguments %q; usage: api [migrate]", args)
}
