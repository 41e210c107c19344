// Package report turns the figures of a run into its table, its JSON, its charts,
// the table of goals and the figures of the README.
package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files of a run. Everything but latest.json is made from it.
const (
	LatestFile  = "latest.json"
	speedsFile  = "latest.svg"
	latencyFile = "latency.svg"
	goalsFile   = "goals.md"
)

// comparison is a row of what a user chooses by: keys of Passbook's figure, of the
// synchronous handler's and of pgbench's, empty where there is none.
type comparison struct {
	label                   string
	passbook, peer, pgbench string
}

var speeds = []comparison{
	{"end to end, 1,000 accounts", "end-to-end/applied", "peer/applied", "ceiling/applied"},
	{"end to end, one hot account", "hot/applied", "peer-hot/applied", ""},
	{"64 clients that post a job and poll it, 1,000 accounts", "submit-and-poll/finished", "peer/applied", ""},
	{"64 clients that post a job and wait for its answer, 1,000 accounts", "submit-and-wait/finished", "peer/applied", ""},
	{"POSTs answered while no worker runs", "accepts/accepted", "peer/applied", ""},
	{"three times as many requests as it can take, 1,000 accounts", "overload/applied", "", ""},
	{"a backlog drained", "backlog/drained", "", ""},
}

// latencies name pairs of figures: -p50 and -p99 follow.
var latencies = []comparison{
	{"POST to its answer at full speed, 1,000 accounts", "end-to-end/post", "peer/post", "ceiling/run"},
	{"POST to its answer at full speed, one hot account", "hot/post", "peer-hot/post", ""},
	{"accepted to finished at full speed, 1,000 accounts", "end-to-end/finish", "peer/post", ""},
	{"accepted to finished at full speed, one hot account", "hot/finish", "peer-hot/post", ""},
	{"POST to finished, 64 clients that post a job and poll it", "submit-and-poll/seen", "peer/post", ""},
	{"POST to finished, 64 clients that post a job and wait for its answer", "submit-and-wait/seen", "peer/post", ""},
	{"POST to finished, 20 jobs a second, polled", "light/seen", "peer-light/post", ""},
	{"POST to finished, 20 jobs a second, waited for", "light/held", "peer-light/post", ""},
	{"POST to its answer at three times as many requests as it can take, where accepted", "overload/post", "", ""},
	{"accepted to finished at 20 % of the peak rate", "latency/20", "", ""},
	{"accepted to finished at 40 % of the peak rate", "latency/40", "", ""},
	{"accepted to finished at 60 % of the peak rate", "latency/60", "", ""},
	{"accepted to finished at 80 % of the peak rate", "latency/80", "", ""},
}

// find is what a run found of a figure.
func (r Result) find(key string) (Spread, bool) {
	i := slices.IndexFunc(r.Figures, func(f FigureResult) bool { return f.Part+"/"+f.Name == key })
	if i < 0 {
		return Spread{}, false
	}
	return r.Figures[i].Spread, true
}

// ratio is that of two figures, by the goal that sets them against each other: its
// ratios are of one turn each, which ran minutes apart at most.
func (r Result) ratio(of, against string) (Spread, bool) {
	goal := slices.IndexFunc(Targets, func(t Target) bool { return t.Of == of && t.Against == against })
	if goal < 0 || against == "" {
		return Spread{}, false
	}
	return r.goal(Targets[goal])
}

// goal is what a run found of a goal.
func (r Result) goal(t Target) (Spread, bool) {
	if t.Against == "" {
		return r.find(t.Of)
	}
	i := slices.IndexFunc(r.Targets, func(found TargetResult) bool { return found.Label == t.Label })
	if i < 0 {
		return Spread{}, false
	}
	return r.Targets[i].Spread, true
}

// Files are the charts and the table of goals, by their names.
func (r Result) Files() (map[string][]byte, error) {
	files := map[string][]byte{goalsFile: r.goals()}
	var err error
	if files[speedsFile], err = r.speedsChart(); err != nil {
		return nil, err
	}
	if r.hasLatency() {
		files[latencyFile], err = r.latencyChart()
	}
	return files, err
}

// goals is a table of what was to be reached, and was or was not.
func (r Result) goals() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Goals, and what the last run reached\n\n%s\n\n", r.Origin())
	fmt.Fprint(&b, "| | median | least to most | to reach | |\n| --- | --- | --- | --- | --- |\n")
	for _, t := range Targets {
		found, ok := r.goal(t)
		if !ok {
			fmt.Fprintf(&b, "| %s | | | %s | not measured |\n", t.Label, t.says())
			continue
		}
		verdict := "missed"
		if t.reached(found.Median) {
			verdict = "reached"
		}
		value := strings.TrimSpace(Number(found.Median) + " " + t.Unit)
		fmt.Fprintf(&b, "| %s | %s | %s to %s | %s | %s |\n", t.Label, value, Number(found.Min), Number(found.Max), t.says(), verdict)
	}
	return b.Bytes()
}

// Origin says where the figures come from.
func (r Result) Origin() string {
	return fmt.Sprintf("%s. Medians of %d rounds on %s.", r.Machine, r.Rounds, r.TakenAt.Format("2 January 2006"))
}

// section is the README's figures.
func (r Result) section(folder string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.Origin())
	fmt.Fprintf(&b, "![jobs a second of Passbook, the synchronous handler and pgbench](%s)\n\n", filepath.Join(folder, speedsFile))
	fmt.Fprint(&b, "| jobs a second | Passbook | synchronous handler | pgbench | Passbook / handler | Passbook / pgbench |\n")
	fmt.Fprint(&b, "| --- | --- | --- | --- | --- | --- |\n")
	r.rows(&b, speeds, r.speedCells)
	fmt.Fprint(&b, "\n| p50 / p99 in ms | Passbook | synchronous handler | pgbench |\n| --- | --- | --- | --- |\n")
	r.rows(&b, latencies, r.latencyCells)
	if r.hasLatency() {
		fmt.Fprintf(&b, "\n![how long jobs take from accepted to finished, at a share of the peak rate](%s)\n", filepath.Join(folder, latencyFile))
	}
	return b.String()
}

// rows writes the rows of which Passbook's figure was measured.
func (r Result) rows(b *strings.Builder, all []comparison, cells func(comparison) []string) {
	for _, c := range all {
		if row := cells(c); row[0] != "" {
			fmt.Fprintf(b, "| %s | %s |\n", c.label, strings.Join(row, " | "))
		}
	}
}

func (r Result) speedCells(c comparison) []string {
	median := func(found Spread, ok bool) string {
		if !ok {
			return ""
		}
		return Number(found.Median)
	}
	return []string{
		median(r.find(c.passbook)), median(r.find(c.peer)), median(r.find(c.pgbench)),
		median(r.ratio(c.passbook, c.peer)), median(r.ratio(c.passbook, c.pgbench)),
	}
}

func (r Result) latencyCells(c comparison) []string {
	pair := func(key string) string {
		p50, ok := r.find(key + "-p50")
		p99, both := r.find(key + "-p99")
		if !ok || !both {
			return ""
		}
		return Number(p50.Median) + " / " + Number(p99.Median)
	}
	return []string{pair(c.passbook), pair(c.peer), pair(c.pgbench)}
}

// What stands before and behind the README's figures.
const (
	sectionBegins = "<!-- The figures, which make bench-readme writes: -->\n\n"
	sectionEnds   = "\n<!-- The end of the figures. -->\n"
)

// WriteReadme writes again everything that is made from latest.json: the charts, the
// goals and the README's figures.
func WriteReadme(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench readme", flag.ContinueOnError)
	folder := flags.String("out", "internal/bench/results", "folder of the results")
	path := flags.String("readme", "README.md", "file that has the figures")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := ReadResult(*folder, LatestFile)
	if err != nil {
		return err
	}
	files, err := r.Files()
	if err != nil {
		return err
	}
	if err := WriteFiles(*folder, files, out); err != nil {
		return err
	}
	return UpdateDocument(*path, func(readme []byte) ([]byte, error) {
		return WithSection(readme, sectionBegins, sectionEnds, r.section(*folder))
	}, out)
}

// UpdateDocument writes a document again, as update returns it.
func UpdateDocument(path string, update func([]byte) ([]byte, error), out io.Writer) error {
	document, err := os.ReadFile(path) //nolint:gosec // the file that was named
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	if document, err = update(document); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return WriteFiles(filepath.Dir(path), map[string][]byte{filepath.Base(path): document}, out)
}

// ReadResult reads a run's JSON. It returns an error for a run at another scale than 1, whose figures mean nothing.
func ReadResult(folder, file string) (r Result, err error) {
	text, err := os.ReadFile(filepath.Join(folder, file)) //nolint:gosec // the folder that was named
	if err != nil {
		return Result{}, fmt.Errorf("read the results: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return Result{}, fmt.Errorf("read the results: %w", err)
	}
	if r.Scale != 1 {
		return Result{}, fmt.Errorf("a try at scale %s, whose figures mean nothing", Number(r.Scale))
	}
	return r, nil
}

// WithSection puts another text between two lines of a document.
func WithSection(document []byte, begin, end, text string) ([]byte, error) {
	before, after, begins := bytes.Cut(document, []byte(begin))
	_, after, ends := bytes.Cut(after, []byte(end))
	if !begins || !ends {
		return nil, fmt.Errorf("there is no place for figures between %q and %q", begin, end)
	}
	return slices.Concat(before, []byte(begin+text+end), after), nil
}
