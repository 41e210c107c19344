package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/peer"
	"github.com/passbook/passbook/internal/bench/report"
)

// settings say what to measure.
type settings struct {
	rounds int
	parts  []part
	folder string // of the results
	passes int    // over each group in a round
	environment.Config
}

func readSettings(args []string) (settings, error) {
	s := settings{passes: groupPasses, Config: environment.Config{MinAccounts: ceilingClients, Peer: peer.Default}}
	var names string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&s.rounds, "rounds", 3, "how often to measure each part")
	flags.StringVar(&names, "parts", "", "parts to measure, with commas between: "+environment.PartNames(parts())+"; all where empty")
	flags.Float64Var(&s.Scale, "scale", 1, "of all counts and durations; figures are valid at 1 only")
	flags.StringVar(&s.folder, "out", "internal/bench/results", "folder of the results")
	s.RegisterPrograms(flags)
	s.Peer.Register(flags, "peer-")
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	switch {
	case flags.NArg() > 0:
		return settings{}, fmt.Errorf("unknown arguments %q", flags.Args())
	case s.rounds < 1 || s.Scale <= 0:
		return settings{}, errors.New("-rounds and -scale are more than 0")
	}
	var err error
	s.parts, err = environment.ChooseParts(parts(), names)
	return s, err
}

// measure runs all rounds and writes the results.
func measure(ctx context.Context, s settings) (err error) {
	began := time.Now()
	r, err := startMeasurement(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(context.WithoutCancel(ctx))) }()
	machine, err := r.Describe(ctx)
	if err != nil {
		return err
	}
	r.Say("%v", machine)
	var rounds []report.Figures
	for n := range s.rounds {
		found, err := r.round(ctx, n)
		if err != nil {
			return err
		}
		rounds = append(rounds, found...)
	}
	result := report.Summarize(rounds, report.Catalogue, report.Targets)
	result.Finish(began, s.rounds, s.Scale, machine, s.Out)
	files, err := result.Files()
	if err != nil {
		return err
	}
	if files[report.LatestFile], err = result.JSON(); err != nil {
		return err
	}
	return report.WriteFiles(s.folder, files, s.Out)
}

// measurement is the environments' base and the settings of a run.
type measurement struct {
	*environment.Base
	settings settings
	began    time.Time
}

func startMeasurement(ctx context.Context, s settings) (*measurement, error) {
	began := time.Now()
	base, err := environment.Open(ctx, s.Config)
	return &measurement{Base: base, settings: s, began: began}, err
}

// round measures every part, backwards in every other round. It returns the figures of
// the first pass over every part, then those of the further passes over its groups.
func (r *measurement) round(ctx context.Context, n int) ([]report.Figures, error) {
	parts := slices.Clone(r.settings.parts)
	if n%2 == 1 {
		slices.Reverse(parts)
	}
	first := r.newPass(n)
	found := []report.Figures{first.figures}
	for len(parts) > 0 {
		together := group(parts)
		parts = parts[len(together):]
		if err := first.measure(ctx, together, ""); err != nil {
			return nil, err
		}
		for n := 2; len(together) > 1 && n <= r.settings.passes; n++ {
			again := r.newPass(first.round)
			slices.Reverse(together)
			if err := again.measure(ctx, together, fmt.Sprintf(", pass %d of %d", n, r.settings.passes)); err != nil {
				return nil, err
			}
			first.takePeaks(again.figures)
			found = append(found, again.figures)
		}
	}
	return found, nil
}

// pass is one pass over the parts of a round, or one more over a group of them.
type pass struct {
	*measurement
	round   int
	figures report.Figures // found so far
}

func (r *measurement) newPass(round int) *pass {
	return &pass{measurement: r, round: round, figures: report.Figures{}}
}

// measure measures some parts, one after another.
func (p *pass) measure(ctx context.Context, parts []part, which string) error {
	for _, part := range parts {
		began := time.Now()
		p.Say("round %d of %d, part %d of %d: %s%s", p.round+1, p.settings.rounds, p.number(part), len(p.settings.parts), part.name, which)
		err := environment.MeasurePart(ctx, part, partTimeout, func(ctx context.Context) error { return part.measure(ctx, p) })
		if err != nil {
			return err
		}
		p.Say("  %s(%v, %v since the start)", p.figures.Line(report.Catalogue, part.name),
			time.Since(began).Round(100*time.Millisecond), time.Since(p.began).Round(time.Second))
	}
	return nil
}

// in sets up an environment, puts loads on it, and keeps the peaks of its memory.
func (p *pass) in(ctx context.Context, t environment.Topology, loads func(*environment.Environment) error) error {
	peaks, err := p.Run(ctx, t, loads)
	for program, peak := range peaks {
		key := peaksPart + "/" + program
		p.figures[key] = max(p.figures[key], float64(peak)/1e6)
	}
	return err
}

// peaksPart is the part of the figures that say how much memory each program used, in MB.
const peaksPart = "memory"

// takePeaks moves the peaks of a further pass to the first.
func (p *pass) takePeaks(further report.Figures) {
	for key, peak := range further {
		if strings.HasPrefix(key, peaksPart+"/") {
			p.figures[key] = max(p.figures[key], peak)
			delete(further, key)
		}
	}
}

// number is a part's position in the round, from 1.
func (p *pass) number(of part) int {
	i := slices.IndexFunc(p.settings.parts, func(other part) bool { return other.name == of.name })
	if p.round%2 == 1 {
		return len(p.settings.parts) - i
	}
	return i + 1
}

func (p *pass) set(part, name string, value float64) {
	p.figures[part+"/"+name] = value
}

// partTimeout bounds one part: the longest takes two minutes on two slow cores.
const partTimeout = 15 * time.Minute
