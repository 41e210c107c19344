// Command bench measures Passbook against what else a user could run, on one
// machine, in one run. Its promise: a figure is measured on processes as they are
// deployed, at safe durability settings, and only when every job of its load has
// been found applied, once, in a ledger that verifies.
//
//	bench           measure all parts, print a table, write latest.json, its charts and goals.md
//	bench history   measure histories of up to a hundred million transactions
//	bench profile   leave CPU profiles of api and worker under load
//	bench readme    write the README's figures from latest.json
//	bench peer      serve the synchronous peer; the measurement starts it
//
// `make bench`, `make bench-history`, `make profile` and `make bench-readme` run it. Each
// takes -h.
//
// One round measures every part, and most of what a target sets against each other close
// together, several times: a machine that is shared changes its speed within seconds.
// Rounds alternate their direction, so that no part always follows the same other. A
// part has a scene of its own: a copy of one template database (10,000 accounts of one
// user, opened through ledger.Accounts, and nothing else), so tables are equally small
// for everyone, a Redis that is new, and processes that are. Before its clock starts
// everything is warmed up with a few hundred jobs, and Postgres writes a checkpoint, so
// that no part pays for another's. All of it, the load too, shares one machine: ratios
// within a run mean something, figures of two machines side by side do not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/passbook/passbook/internal/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C, while we stop in order, ends us at once; what we started
	// ends with us.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	command := "measure"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "measure":
		s, err := readSettings(args)
		if err != nil {
			return err
		}
		return measure(ctx, s, stdout)
	case "history":
		rows, s, err := readHistorySettings(args)
		if err != nil {
			return err
		}
		return measureHistory(ctx, rows, s, stdout)
	case "profile":
		s, err := readProfileSettings(args)
		if err != nil {
			return err
		}
		return profile(ctx, s, stdout)
	case "readme":
		return writeReadme(args, stdout)
	case "peer":
		s, err := readPeerSettings(args)
		if err != nil {
			return err
		}
		cfg, err := config.LoadAPI(getenv) // it is configured as the api is
		if err != nil {
			return err
		}
		return servePeer(ctx, cfg, s, stdout)
	}
	return fmt.Errorf("unknown command %q; there are history, profile, readme and peer, and none", command)
}
