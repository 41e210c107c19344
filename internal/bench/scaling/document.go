package scaling

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/passbook/passbook/internal/bench/report"
)

// section is a part of docs/scaling.md that is made from the figures. It stands there between two
// comments with its name.
type section struct {
	name  string
	write func(figures) string
}

var sections = []section{
	{"origin", figures.origin},
	{"costs", figures.costs},
	{"more", figures.more},
	{"limits", figures.limits},
	{"pace", figures.pace},
	{"example", figures.example},
	{"primary", figures.primary},
}

func (s section) begin() string { return "<!-- " + s.name + ", which make scaling writes: -->\n" }
func (s section) end() string   { return "<!-- The end of " + s.name + ". -->\n" }

// WriteDocument writes the figures of docs/scaling.md again, from scaling.json.
func WriteDocument(args []string, out io.Writer) error {
	var folder, document string
	flags := flag.NewFlagSet("bench scaling-doc", flag.ContinueOnError)
	registerFiles(flags, &folder, &document)
	if err := flags.Parse(args); err != nil {
		return err
	}
	result, err := readResult(folder)
	if err != nil {
		return err
	}
	return writeDocument(result, document, out)
}

// readResult reads a run's scaling.json.
func readResult(folder string) (r report.Result, err error) {
	text, err := os.ReadFile(filepath.Join(folder, resultFile)) //nolint:gosec // the folder that was named
	if err != nil {
		return report.Result{}, fmt.Errorf("read the results: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return report.Result{}, fmt.Errorf("read the results: %w", err)
	}
	return r, nil
}

func writeDocument(result report.Result, path string, out io.Writer) error {
	document, err := os.ReadFile(path) //nolint:gosec // the file that was named
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	if document, err = withFigures(document, result); err != nil {
		return err
	}
	return report.WriteFiles(filepath.Dir(path), map[string][]byte{filepath.Base(path): document}, out)
}

// withFigures puts a run's figures in the place of those that the document has.
func withFigures(document []byte, result report.Result) ([]byte, error) {
	f, err := newFigures(result)
	if err != nil {
		return nil, err
	}
	for _, s := range sections {
		before, after, begins := bytes.Cut(document, []byte(s.begin()))
		_, after, ends := bytes.Cut(after, []byte(s.end()))
		if !begins || !ends {
			return nil, fmt.Errorf("the document has no place for %s", s.name)
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s%s\n%s\n\n%s%s", before, s.begin(), strings.TrimSuffix(s.write(f), "\n"), s.end(), after)
		document = b.Bytes()
	}
	return document, nil
}

// figures are the medians of a run, by "part/name".
type figures struct {
	report.Result
	medians map[string]float64
}

// newFigures returns an error where a figure is missing.
func newFigures(result report.Result) (figures, error) {
	f := figures{result, map[string]float64{}}
	for _, found := range result.Figures {
		f.medians[found.Part+"/"+found.Name] = found.Median
	}
	for _, c := range catalogue() {
		if _, ok := f.medians[c.Key()]; !ok {
			return figures{}, fmt.Errorf("%s was not measured", c.Key())
		}
	}
	return f, nil
}

// of is a median, and says is the same as text.
func (f figures) of(key string) float64  { return f.medians[key] }
func (f figures) says(key string) string { return number(f.medians[key]) }

// cpu is the time that a job takes of a process, in µs, with one of each thing.
func (f figures) cpu(process string) float64 { return f.of(plain + "/cpu-" + process) }

// rate is how many jobs a second the machine applied, with one of each thing.
func (f figures) rate() float64 { return f.of(plain + "/applied") }

// origin says where the figures come from.
func (f figures) origin() string {
	text := fmt.Sprintf("%s. Medians of %s on %s.\n", f.Machine, plural(f.Rounds, "round"), f.TakenAt.Format("2 January 2006"))
	if f.Scale != 1 {
		text += fmt.Sprintf("\n**A try at scale %s: its figures mean nothing.**\n", number(f.Scale))
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// costs is what a job costs.
func (f figures) costs() string {
	var b strings.Builder
	fmt.Fprint(&b, "| a job costs | |\n| --- | --- |\n")
	row := func(label, format string, keys ...string) {
		values := make([]any, len(keys))
		for i, key := range keys {
			values[i] = f.says(key)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", label, fmt.Sprintf(format, values...))
	}
	row("CPU of Postgres", "%s µs", plain+"/cpu-postgres")
	row("CPU of the API", "%s µs", plain+"/cpu-api")
	row("CPU of the worker", "%s µs", plain+"/cpu-worker")
	row("CPU of Redis", "%s µs", plain+"/cpu-redis")
	row("Postgres's log", "%s bytes of records, and just after a checkpoint %s of whole pages", "job/log-records", "job/log-pages")
	row("flushes of Postgres's log", "%s", "job/flushes")
	row("kept on disk, with indexes", "%s bytes", "job/kept")
	row("round trips to Postgres", "%s, with %s bytes there and %s back", "job/trips-postgres", "job/to-postgres", "job/from-postgres")
	row("round trips to Redis", "%s, with %s bytes there and %s back", "job/trips-redis", "job/to-redis", "job/from-redis")
	row("Redis's memory while it is queued", "%s bytes", "held/queued")
	fmt.Fprint(&b, "\n| is held | memory |\n| --- | --- |\n")
	row("a connection to Postgres, in Postgres", "%s kB", "job/connection")
	row("a request that waits for a job, in the API", "%s kB", "held/waiting")
	row("an event stream, in the API", "%s kB", "held/stream")
	row("an API, at its peak", "%s MB", plain+"/memory-api")
	row("a worker, at its peak", "%s MB", plain+"/memory-worker")
	return b.String()
}

// more is what more of one thing does to the whole, on this one machine.
func (f figures) more() string {
	var b strings.Builder
	fmt.Fprint(&b, "| | jobs a second | of the first row | CPU of a job, µs | at rest, of a core | connections to Postgres | to Redis |\n")
	fmt.Fprint(&b, "| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, c := range cells {
		speed, sum := "", 0.0
		if c.name != plain {
			speed = f.says(c.name + "/speed")
		}
		for _, process := range processes {
			sum += f.of(c.name + "/cpu-" + process)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s %% | %s | %s |\n", c.label, f.says(c.name+"/applied"), speed, number(sum),
			f.says(c.name+"/rest"), f.says(c.name+"/connections-postgres"), f.says(c.name+"/connections-redis"))
	}
	return b.String()
}
