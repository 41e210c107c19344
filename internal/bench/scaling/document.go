package scaling

import (
	"flag"
	"fmt"
	"io"
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
	{"origin", func(f figures) string { return f.Origin() + "\n" }},
	{"costs", figures.costs},
	{"more", figures.more},
	{"limits", figures.limits},
	{"pace", figures.pace},
	{"example", figures.example},
	{"primary", figures.primary},
}

func (s section) begin() string { return "<!-- " + s.name + ", which make scaling writes: -->\n\n" }
func (s section) end() string   { return "\n<!-- The end of " + s.name + ". -->\n" }

// WriteDocument writes the figures of docs/scaling.md again, from scaling.json.
func WriteDocument(args []string, out io.Writer) error {
	var folder, document string
	flags := flag.NewFlagSet("bench scaling-doc", flag.ContinueOnError)
	registerFiles(flags, &folder, &document)
	if err := flags.Parse(args); err != nil {
		return err
	}
	result, err := report.ReadResult(folder, resultFile)
	if err != nil {
		return err
	}
	return writeDocument(result, document, out)
}

func writeDocument(result report.Result, path string, out io.Writer) error {
	return report.UpdateDocument(path, func(document []byte) ([]byte, error) { return withFigures(document, result) }, out)
}

// withFigures puts a run's figures in the place of those that the document has.
func withFigures(document []byte, result report.Result) ([]byte, error) {
	f, err := newFigures(result)
	if err != nil {
		return nil, err
	}
	for _, s := range sections {
		if document, err = report.WithSection(document, s.begin(), s.end(), s.write(f)); err != nil {
			return nil, err
		}
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
