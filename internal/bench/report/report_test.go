package report

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const results = "internal/bench/results" // from the README, which names files in it

// The README's figures, the charts and the goals are those of the last run: after a run,
// or a change of what is made from it, `make bench-readme` writes them anew.
func TestReport_IsOfTheLastRun(t *testing.T) {
	t.Parallel()
	r, err := ReadResult("../results", LatestFile)
	if err != nil {
		t.Fatal(err)
	}
	files, err := r.Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join("../results", name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what latest.json says (%v): run make bench-readme", name, err)
		}
	}
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want, err := WithSection(readme, sectionBegins, sectionEnds, r.section(results)); err != nil || !bytes.Equal(readme, want) {
		t.Errorf("README.md does not have the figures of latest.json (%v): run make bench-readme", err)
	}
}

// Each row has what was measured of it: a comparison's figures, and the ratios of its goals.
func TestSection(t *testing.T) {
	t.Parallel()
	r := Summarize([]Figures{{
		"end-to-end/applied": 5000, "peer/applied": 2500, "ceiling/applied": 4000,
		"end-to-end/post-p50": 1, "end-to-end/post-p99": 2, "peer/post-p50": 3, "peer/post-p99": 4,
		"latency/60-p50": 5, // without its p99
	}}, Catalogue, Targets)
	r.Rounds, r.TakenAt = 1, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	got := r.section("folder")
	for _, want := range []string{
		"Medians of 1 rounds on 2 January 2026",
		"| end to end, 1,000 accounts | 5,000 | 2,500 | 4,000 | 2 | 1.25 |",
		"| POST to its answer at full speed, 1,000 accounts | 1 / 2 | 3 / 4 |  |",
		"(folder/latest.svg)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
	for _, unwanted := range []string{"hot account", "60 %", latencyFile} {
		if strings.Contains(got, unwanted) {
			t.Errorf("there is %q, which was not measured, in\n%s", unwanted, got)
		}
	}
}

// A goal that a run did not measure is told from one that it missed.
func TestGoals(t *testing.T) {
	t.Parallel()
	r := Summarize([]Figures{{"end-to-end/applied": 15, "peer/applied": 10, "light/seen-p50": 4}}, Catalogue, Targets)
	got := string(r.goals())
	for _, want := range []string{
		"| end to end / synchronous peer, 1,000 accounts | 1.50 | 1.50 to 1.50 | at least 1.7 | missed |",
		"| POST to finished at light load, p50 | 4 ms | 4 to 4 | under 5 ms | reached |",
		"| POST to finished at light load, p99 | | | under 15 ms | not measured |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
}

func TestWithSection(t *testing.T) {
	t.Parallel()
	const before, after = "# Title\n\n" + sectionBegins, sectionEnds + "\nMore.\n"
	got, err := WithSection([]byte(before+"old\n"+after), sectionBegins, sectionEnds, "new\n")
	if want := before + "new\n" + after; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, readme := range []string{"", before, after} {
		if got, err := WithSection([]byte(readme), sectionBegins, sectionEnds, "new\n"); err == nil {
			t.Errorf("%q: got %q, want an error", readme, got)
		}
	}
}

// The lines of the grid are round, and hold the slowest.
func TestLatencyGrid(t *testing.T) {
	t.Parallel()
	for slowest, want := range map[float64][]float64{0: {0.1, 1}, 4: {1, 4}, 5: {1, 5}, 5.1: {2, 3}, 24: {5, 5}, 113: {50, 3}, 1001: {500, 3}} {
		found := Figures{}
		for _, share := range []string{"20", "40", "60", "80"} {
			found["latency/"+share+"-p99"] = slowest
		}
		if step, lines := Summarize([]Figures{found}, Catalogue, nil).latencyGrid(); step != want[0] || float64(lines) != want[1] {
			t.Errorf("%v: got %v, %v, want %v", slowest, step, lines, want)
		}
	}
}
