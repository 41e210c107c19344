package scaling

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/bench/benchtest"
	"github.com/passbook/passbook/internal/bench/report"
)

func TestMain(m *testing.M) {
	benchtest.Main(m)
}

// Parts of every kind measure something. A run of some parts leaves the document as it is.
func TestMeasure(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	parts := []string{"plain", "masters-3", "job", "held"}
	s, err := ReadSettings([]string{"-rounds=1", "-scale=0.01", "-parts=" + strings.Join(parts, ","), "-out=" + folder, "-document=none"})
	if err != nil {
		t.Fatal(err)
	}
	s.Programs = benchtest.Programs(t, filepath.Join("..", "..", ".."))
	var said strings.Builder
	s.Unflushed, s.Out = true, &said
	if err := Measure(t.Context(), s); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	t.Log(said.String())
	got := benchtest.Result(t, folder, resultFile)
	// The kernel counts CPU in steps of 10 ms, and without flushes Postgres writes no whole pages.
	mayBeNothing := []string{"cpu-api", "cpu-worker", "cpu-redis", "cpu-postgres", "rest", "more", "flushes", "log-pages", "queued", "stream", "waiting"}
	benchtest.CheckFigures(t, got, catalogue(), parts, mayBeNothing)
}

// docs/scaling.md has the figures of scaling.json: a figure can't be typed in.
func TestDocument(t *testing.T) {
	t.Parallel()
	result, err := report.ReadResult(filepath.Join("..", "results"), resultFile)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "scaling.md"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := withFigures(got, result)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/scaling.md does not have the figures of scaling.json: run make scaling-doc")
	}
}

// The example's lines follow from each other as their texts say.
func TestExample(t *testing.T) {
	t.Parallel()
	result := report.Result{Scale: 1, Machine: report.Machine{CPUs: 2, FlushMicros: 50}}
	values := map[string]float64{
		"plain/applied": 4000, "plain/cpu-postgres": 300, "plain/cpu-api": 90, "plain/cpu-worker": 45, "plain/cpu-redis": 30,
		"job/connection": 5000, "job/flushes": 0.05, "job/kept": 500, "hot/applied": 3000,
	}
	for _, c := range catalogue() {
		value, ok := values[c.Key()]
		if !ok {
			value = 1
		}
		result.Figures = append(result.Figures, report.FigureResult{Part: c.Part, Name: c.Name, Spread: report.Spread{Median: value}})
	}
	f, err := newFigures(result)
	if err != nil {
		t.Fatal(err)
	}
	lines := f.exampleLines()
	for number, want := range map[int][3]float64{
		1:  {4000, 40_000, 400_000},
		2:  {2, 20, 200},     // 4,000 × 300 / 1,000,000 / 0.6
		3:  {0.6, 6, 60},     // 4,000 × 90 / 1,000,000 / 0.6
		5:  {0.2, 2, 20},     // 4,000 × 30 / 1,000,000 / 0.6
		6:  {2, 2, 15},       // APIs
		7:  {2, 2, 8},        // workers: 0.3, 3 and 30 processors
		8:  {64, 64, 368},    // connections
		9:  {320, 320, 1840}, // MB
		12: {200, 2000, 20_000},
		13: {1, 10, 100}, // 200 × 50 / 10,000
		17: {172.8, 1728, 17_280},
	} {
		for n, value := range lines[number-1].values {
			if d := value - want[n]; d > 1e-6 || d < -1e-6 {
				t.Errorf("line %d, %s, %g times: %v, want %v", number, lines[number-1].what, times[n], value, want[n])
			}
		}
	}
	limits := f.allLimits()
	if limits[0].rate != 3000 || limits[1].what != "Postgres primary of 2 processors" || limits[1].rate != 2e6/300 {
		t.Errorf("the limits begin with %v", limits[:2])
	}
	if got := f.primary(); !strings.Contains(got, "64 × 0.6 × 1,000,000 / 300 = 128,000 jobs a second, 32 times") {
		t.Error(got)
	}
}

// A document without a figure's place, or a run without a figure, is an error.
func TestWithFigures_Missing(t *testing.T) {
	t.Parallel()
	if _, err := withFigures([]byte("# no place"), report.Result{}); err == nil || !strings.Contains(err.Error(), "was not measured") {
		t.Errorf("got %v", err)
	}
	var all report.Result
	for _, c := range catalogue() {
		all.Figures = append(all.Figures, report.FigureResult{Part: c.Part, Name: c.Name})
	}
	if _, err := withFigures([]byte("# no place"), all); err == nil || !strings.Contains(err.Error(), "between \"<!-- origin") {
		t.Errorf("got %v", err)
	}
}
