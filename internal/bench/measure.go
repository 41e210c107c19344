package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// settings say what to measure.
type settings struct {
	rounds int
	parts  []part
	scale  float64 // of every count and duration; below 1 for a try
	folder string  // of what is written
	peer   peerSettings
	turns  int    // of each group in a round
	built  string // the folder of programs that are built already; empty to build them
	// unflushed has nothing wait for the disk. For tests of the instrument alone: without
	// flushes, a figure means nothing.
	unflushed bool
}

func readSettings(args []string) (settings, error) {
	s := settings{peer: defaultPeer, turns: groupTurns}
	var names string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&s.rounds, "rounds", 3, "how often to measure each part")
	flags.StringVar(&names, "parts", "", "parts to measure, with commas between: "+partNames()+"; all where empty")
	flags.Float64Var(&s.scale, "scale", 1, "of all counts and durations; figures mean something at 1 alone")
	flags.StringVar(&s.folder, "out", "internal/bench/results", "folder of the results")
	s.peer.register(flags, "peer-")
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	switch {
	case flags.NArg() > 0:
		return settings{}, fmt.Errorf("unknown arguments %q", flags.Args())
	case s.rounds < 1 || s.scale <= 0:
		return settings{}, errors.New("-rounds and -scale are more than 0")
	}
	var err error
	s.parts, err = chooseParts(names)
	return s, err
}

// measure runs all rounds and reports.
func measure(ctx context.Context, s settings, out io.Writer) (err error) {
	began := time.Now()
	r, err := newRig(ctx, s, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close(context.WithoutCancel(ctx))) }()
	machine, err := r.describe(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, machine)
	var rounds []figures
	for n := range s.rounds {
		found, err := r.round(ctx, n)
		if err != nil {
			return err
		}
		rounds = append(rounds, found...)
	}
	result := summarize(rounds, catalogue, targets)
	result.TakenAt, result.Took = began.UTC(), time.Since(began).Round(time.Second).String()
	result.Rounds, result.Scale, result.Machine = s.rounds, s.scale, machine
	result.print(out)
	files, err := result.report()
	if err != nil {
		return err
	}
	if files[latestFile], err = result.json(); err != nil {
		return err
	}
	return writeFiles(s.folder, files, out)
}

// round measures every part, backwards in every other round. What it found comes first,
// and then what further turns of its groups did.
func (r *rig) round(ctx context.Context, n int) ([]figures, error) {
	parts := slices.Clone(r.parts)
	if n%2 == 1 {
		slices.Reverse(parts)
	}
	pass := r.newRound(n)
	found := []figures{pass.figures}
	for len(parts) > 0 {
		together := group(parts)
		parts = parts[len(together):]
		if err := pass.turn(ctx, together, ""); err != nil {
			return nil, err
		}
		for turn := 2; len(together) > 1 && turn <= r.turns; turn++ {
			again := r.newRound(n)
			slices.Reverse(together)
			if err := again.turn(ctx, together, fmt.Sprintf(", turn %d of %d", turn, r.turns)); err != nil {
				return nil, err
			}
			pass.takePeaks(again.figures)
			found = append(found, again.figures)
		}
	}
	return found, nil
}

// turn measures some parts, one after another.
func (r *round) turn(ctx context.Context, parts []part, which string) error {
	for _, p := range parts {
		began := time.Now()
		r.say("round %d of %d, part %d of %d: %s%s", r.number+1, r.rounds, r.place(p), len(r.parts), p.name, which)
		err := p.measureIn(ctx, r)
		switch {
		case ctx.Err() != nil: // whatever it cut short is no fault
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.say("  %s(%v, %v since the start)", r.figures.line(p.name),
			time.Since(began).Round(100*time.Millisecond), time.Since(r.began).Round(time.Second))
	}
	return nil
}

// round is one pass over the parts, or one more turn of a group.
type round struct {
	*rig
	number  int
	figures figures // found so far
}

func (r *rig) newRound(n int) *round {
	return &round{rig: r, number: n, figures: figures{}}
}

// place is where a part stands in a round.
func (r *round) place(p part) int {
	i := slices.IndexFunc(r.parts, func(other part) bool { return other.name == p.name })
	if r.number%2 == 1 {
		return len(r.parts) - i
	}
	return i + 1
}

func (r *round) set(part, name string, value float64) {
	r.figures[part+"/"+name] = value
}

// count scales a count; never to nothing.
func (r *rig) count(n int) int {
	return max(1, int(math.Round(float64(n)*r.scale)))
}

func (r *rig) span(d time.Duration) time.Duration {
	return time.Duration(float64(d) * r.scale)
}

func (r *rig) say(format string, args ...any) {
	fmt.Fprintf(r.out, format+"\n", args...)
}

// partTimeout bounds one part: the longest takes two minutes on two slow cores.
const partTimeout = 15 * time.Minute

func (p part) measureIn(ctx context.Context, r *round) error {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	return p.measure(ctx, r)
}

func partNames() string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return strings.Join(names, ",")
}

func chooseParts(names string) ([]part, error) {
	all := parts()
	if names == "" {
		return all, nil
	}
	wanted := strings.Split(names, ",")
	for _, name := range wanted {
		if !slices.ContainsFunc(all, func(p part) bool { return p.name == name }) {
			return nil, fmt.Errorf("no part %q; there are %s", name, partNames())
		}
	}
	return slices.DeleteFunc(all, func(p part) bool { return !slices.Contains(wanted, p.name) }), nil
}
