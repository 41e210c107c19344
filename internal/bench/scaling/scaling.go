// Package scaling measures what docs/scaling.md calculates with: what a job costs each process,
// Postgres, Redis and the network, and what one more of each thing adds and costs.
package scaling

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
)

// How large the loads are, at scale 1.
const (
	manyAccounts = 1_000
	jobsOfCell   = 20_000
	jobsOfPaced  = 10_000
	jobsOfHot    = 5_000
	jobsQueued   = 20_000
	restSettle   = 2 * time.Second
	restSpan     = 4 * time.Second

	partTimeout = 5 * time.Minute // the longest part takes half a minute on two slow cores
)

const resultFile = "scaling.json"

// Settings say what to measure.
type Settings struct {
	Rounds   int
	Folder   string // of scaling.json
	Document string
	parts    []part
	environment.Config
}

// ReadSettings reads the settings from arguments.
func ReadSettings(args []string) (s Settings, err error) {
	var names string
	flags := flag.NewFlagSet("bench scaling", flag.ContinueOnError)
	flags.IntVar(&s.Rounds, "rounds", 4, "how often to measure each part")
	flags.Float64Var(&s.Scale, "scale", 1, "of all counts and durations; figures are valid at 1 only")
	flags.StringVar(&names, "parts", "", "parts to measure, with commas between: "+environment.PartNames(parts())+"; all where empty, and only then, and at scale 1, the document is written")
	s.RegisterPrograms(flags)
	registerFiles(flags, &s.Folder, &s.Document)
	if err := flags.Parse(args); err != nil {
		return Settings{}, err
	}
	switch {
	case flags.NArg() > 0:
		return Settings{}, fmt.Errorf("unknown arguments %q", flags.Args())
	case s.Rounds < 1 || s.Scale <= 0:
		return Settings{}, errors.New("-rounds and -scale are more than 0")
	}
	s.parts, err = environment.ChooseParts(parts(), names)
	return s, err
}

func registerFiles(flags *flag.FlagSet, folder, document *string) {
	flags.StringVar(folder, "out", "internal/bench/results", "folder of "+resultFile)
	flags.StringVar(document, "document", filepath.Join("docs", "scaling.md"), "file that has the figures")
}

// part is one thing to measure.
type part struct {
	name    string
	measure func(context.Context, *round) error
}

// Name is the part's in -parts.
func (p part) Name() string { return p.name }

// parts are all parts in the order of a round.
func parts() []part {
	var all []part
	for _, c := range cells {
		all = append(all, part{c.name, c.measure})
	}
	return append(all, part{"paced", paced}, part{"hot", hot}, part{"job", job}, part{"held", held})
}

// Measure runs all rounds and writes the results, and the document where all parts were measured at scale 1.
func Measure(ctx context.Context, s Settings) (err error) {
	began := time.Now()
	base, err := environment.Open(ctx, s.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.Close(context.WithoutCancel(ctx))) }()
	machine, err := base.Describe(ctx)
	if err != nil {
		return err
	}
	base.Say("%v", machine)
	var rounds []report.Figures
	for n := range s.Rounds {
		r := &round{Base: base, number: n, settings: s, figures: report.Figures{}}
		if err := r.measure(ctx); err != nil {
			return err
		}
		rounds = append(rounds, r.figures)
	}
	result := report.Summarize(rounds, catalogue(), nil)
	result.Finish(began, s.Rounds, s.Scale, machine, s.Out)
	text, err := result.JSON()
	if err != nil {
		return err
	}
	if err := report.WriteFiles(s.Folder, map[string][]byte{resultFile: text}, s.Out); err != nil {
		return err
	}
	if len(s.parts) < len(parts()) || s.Scale != 1 { // a try's figures mean nothing
		return nil
	}
	return writeDocument(result, s.Document, s.Out)
}

// round is one round over the parts.
type round struct {
	*environment.Base
	settings Settings
	number   int
	figures  report.Figures
}

// measure measures each part, backwards in every other round: what a machine's speed does within
// a round then meets all parts alike.
func (r *round) measure(ctx context.Context) error {
	parts := slices.Clone(r.settings.parts)
	if r.number%2 == 1 {
		slices.Reverse(parts)
	}
	for n, p := range parts {
		began := time.Now()
		r.Say("round %d of %d, part %d of %d: %s", r.number+1, r.settings.Rounds, n+1, len(parts), p.name)
		err := environment.MeasurePart(ctx, p, partTimeout, func(ctx context.Context) error { return p.measure(ctx, r) })
		if err != nil {
			return err
		}
		r.Say("  %s(%v)", r.figures.Line(catalogue(), p.name), time.Since(began).Round(100*time.Millisecond))
	}
	r.compare()
	return nil
}

func (r *round) set(part, name string, value float64) { r.figures[part+"/"+name] = value }

func (r *round) orders(jobs, accounts int) []load.Order {
	return load.EvenOrders(load.Random(r.number), r.Count(jobs), accounts)
}
