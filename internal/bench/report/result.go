package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// Result is a run, as its JSON holds it.
type Result struct {
	TakenAt time.Time      `json:"taken_at"`
	Took    string         `json:"took"`
	Rounds  int            `json:"rounds"`
	Scale   float64        `json:"scale"`
	Machine Machine        `json:"machine"`
	Targets []TargetResult `json:"targets"`
	Figures []FigureResult `json:"figures"`
}

// FigureResult is one figure of a run.
type FigureResult struct {
	Part  string `json:"part"`
	Name  string `json:"name"`
	Label string `json:"label"`
	Unit  string `json:"unit"`
	Spread
}

// TargetResult is one target of a run.
type TargetResult struct {
	Label   string `json:"label"`
	Target  string `json:"target"`
	Unit    string `json:"unit,omitempty"`
	Reached bool   `json:"reached"` // by the median
	Spread
	target Target
}

// Summarize puts the rounds together. It leaves out what no round has measured.
func Summarize(rounds []Figures, catalogue []Figure, targets []Target) Result {
	var r Result
	for _, f := range catalogue {
		value := func(round Figures) (float64, bool) { v, ok := round[f.Key()]; return v, ok }
		if found, ok := collect(rounds, value); ok {
			r.Figures = append(r.Figures, FigureResult{Part: f.Part, Name: f.Name, Label: f.Label, Unit: f.Unit, Spread: found})
		}
	}
	for _, t := range targets {
		if found, ok := collect(rounds, t.in); ok {
			r.Targets = append(r.Targets, TargetResult{
				Label: t.Label, Target: t.says(), Unit: t.Unit, Reached: t.reached(found.Median), Spread: found, target: t,
			})
		}
	}
	return r
}

func collect(rounds []Figures, value func(Figures) (float64, bool)) (Spread, bool) {
	var values []float64
	for _, round := range rounds {
		if v, ok := value(round); ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return Spread{}, false
	}
	return spreadOf(values), true
}

// Finish notes when, how and where the run took place, and prints the result.
func (r *Result) Finish(began time.Time, rounds int, scale float64, machine Machine, out io.Writer) {
	r.TakenAt, r.Took = began.UTC(), time.Since(began).Round(time.Second).String()
	r.Rounds, r.Scale, r.Machine = rounds, scale, machine
	r.Print(out)
}

// Print writes the figures and the targets as two tables.
func (r Result) Print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\npart\tmedian\tmin\tmax\t unit\t figure\t")
	for _, f := range r.Figures {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t %s\t %s\t\n", f.Part, Number(f.Median), Number(f.Min), Number(f.Max), f.Unit, f.Label)
	}
	_ = table.Flush() // what a program says
	if len(r.Targets) > 0 {
		fmt.Fprintln(table, "\nto reach\tmedian\tmin\tmax\t target\t reached\t")
	}
	for _, t := range r.Targets {
		reached := "no"
		if t.Reached {
			reached = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t %s\t %s\t\n", t.Label, Number(t.Median), Number(t.Min), Number(t.Max), t.Target, reached)
	}
	_ = table.Flush()
	if r.Scale != 1 {
		fmt.Fprintf(out, "\nA try at scale %s: its figures mean nothing.\n", Number(r.Scale))
	}
}

// JSON is the content of the run's JSON file.
func (r Result) JSON() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	return append(text, '\n'), err
}

// WriteFiles writes files, by their names, to a folder.
func WriteFiles(folder string, files map[string][]byte, out io.Writer) error {
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // readable by all users
		return fmt.Errorf("write the results: %w", err)
	}
	for file, content := range files {
		path := filepath.Join(folder, file)
		if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // readable by all users
			return fmt.Errorf("write the results: %w", err)
		}
		fmt.Fprintln(out, "wrote", path)
	}
	return nil
}

// Machine is where a run took place.
type Machine struct {
	CPUs     int    `json:"cpus"`
	CPU      string `json:"cpu"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	Postgres string `json:"postgres"`
	Redis    string `json:"redis"`
	// FlushMicros is the median of a flush of 8 KiB to the disk that Postgres
	// uses, by fdatasync, while nothing else runs.
	FlushMicros float64 `json:"flush_us"`
}

func (m Machine) String() string {
	return fmt.Sprintf("%d × %s, Linux %s, %s, Postgres %s, Redis %s; a flush to disk takes %s µs",
		m.CPUs, m.CPU, m.Kernel, m.Go, m.Postgres, m.Redis, Number(m.FlushMicros))
}
