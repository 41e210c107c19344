// Command bench measures Passbook against what else a user could run, on one
// machine, in one run. It measures processes as they are deployed, at safe durability
// settings. A figure counts only if every job of its load was applied once and the
// ledger verifies.
//
//	bench           measure all parts, print a table, write latest.json, its charts and goals.md
//	bench history   measure histories of up to a hundred million transactions
//	bench scaling   measure what a job and one more of each thing cost, and write docs/scaling.md
//	bench profile   leave CPU profiles of api and worker under load
//	bench readme    write the README's figures from latest.json
//	bench scaling-doc   write the figures of docs/scaling.md from scaling.json
//	bench peer      serve the synchronous peer; the measurement starts it
//
// `make bench`, `make bench-history`, `make scaling`, `make profile`, `make bench-readme`
// and `make scaling-doc` run it. Each takes -h.
//
// A round measures every part. It measures the parts that a target compares in turn,
// several times: a shared machine changes its speed within seconds. Rounds alternate
// their direction, so that no part always follows the same part.
//
// Each part has an environment of its own: a copy of one template database (10,000
// accounts of one user and nothing else), a new Redis and new processes. Before the
// clock starts, a few hundred jobs warm everything up and Postgres writes a checkpoint,
// so that no part pays for another part's writes. All of it, the load too, shares one
// machine: compare ratios within a run, not figures of two machines.
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

	"github.com/passbook/passbook/internal/bench/history"
	"github.com/passbook/passbook/internal/bench/peer"
	"github.com/passbook/passbook/internal/bench/report"
	"github.com/passbook/passbook/internal/bench/scaling"
	"github.com/passbook/passbook/internal/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the process at once, and its children with it.
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
		s.Out = stdout
		return measure(ctx, s)
	case "history":
		s, err := history.ReadSettings(args)
		if err != nil {
			return err
		}
		s.Out = stdout
		return history.Measure(ctx, s)
	case "scaling":
		s, err := scaling.ReadSettings(args)
		if err != nil {
			return err
		}
		s.Out = stdout
		return scaling.Measure(ctx, s)
	case "profile":
		s, err := readProfileSettings(args)
		if err != nil {
			return err
		}
		s.Out = stdout
		return profile(ctx, s)
	case "readme":
		return report.WriteReadme(args, stdout)
	case "scaling-doc":
		return scaling.WriteDocument(args, stdout)
	case "peer":
		s, err := peer.ReadSettings(args)
		if err != nil {
			return err
		}
		cfg, err := config.LoadAPI(getenv) // the peer has the api's configuration
		if err != nil {
			return err
		}
		return peer.Serve(ctx, cfg, s, stdout)
	}
	return fmt.Errorf("unknown command %q; the commands are history, scaling, profile, readme, scaling-doc and peer; without a command, bench measures", command)
}
