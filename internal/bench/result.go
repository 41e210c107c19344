package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// result is a run, as its JSON holds it.
type result struct {
	TakenAt time.Time      `json:"taken_at"`
	Took    string         `json:"took"`
	Rounds  int            `json:"rounds"`
	Scale   float64        `json:"scale"`
	Machine machine        `json:"machine"`
	Targets []targetResult `json:"targets"`
	Figures []figureResult `json:"figures"`
}

type figureResult struct {
	Part  string `json:"part"`
	Name  string `json:"name"`
	Label string `json:"label"`
	Unit  string `json:"unit"`
	spread
}

type targetResult struct {
	Label   string `json:"label"`
	Target  string `json:"target"`
	Unit    string `json:"unit,omitempty"`
	Reached bool   `json:"reached"` // by the median
	spread
	target target
}

// summarize takes the rounds together. What no round has measured is left out.
func summarize(rounds []figures, catalogue []figure, targets []target) result {
	var r result
	for _, f := range catalogue {
		value := func(round figures) (float64, bool) { v, ok := round[f.key()]; return v, ok }
		if found, ok := collect(rounds, value); ok {
			r.Figures = append(r.Figures, figureResult{Part: f.part, Name: f.name, Label: f.label, Unit: f.unit, spread: found})
		}
	}
	for _, t := range targets {
		if found, ok := collect(rounds, t.in); ok {
			r.Targets = append(r.Targets, targetResult{
				Label: t.label, Target: t.says(), Unit: t.unit, Reached: t.reached(found.Median), spread: found, target: t,
			})
		}
	}
	return r
}

func collect(rounds []figures, value func(figures) (float64, bool)) (spread, bool) {
	var values []float64
	for _, round := range rounds {
		if v, ok := value(round); ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return spread{}, false
	}
	return spreadOf(values), true
}

// print writes both tables.
func (r result) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\npart\tmedian\tmin\tmax\t unit\t figure\t")
	for _, f := range r.Figures {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t %s\t %s\t\n", f.Part, number(f.Median), number(f.Min), number(f.Max), f.Unit, f.Label)
	}
	_ = table.Flush() // what a program says
	fmt.Fprintln(table, "\nto reach\tmedian\tmin\tmax\t target\t reached\t")
	for _, t := range r.Targets {
		reached := "no"
		if t.Reached {
			reached = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t %s\t %s\t\n", t.Label, number(t.Median), number(t.Min), number(t.Max), t.Target, reached)
	}
	_ = table.Flush()
	if r.Scale != 1 {
		fmt.Fprintf(out, "\nA try at scale %s: its figures mean nothing.\n", number(r.Scale))
	}
}

// json is the result as latest.json or history.json holds it.
func (r result) json() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	return append(text, '\n'), err
}

// writeFiles writes files, by their names, to a folder.
func writeFiles(folder string, files map[string][]byte, out io.Writer) error {
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
