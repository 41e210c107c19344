package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The parts that the others are built like measure something, and check that all
// of their jobs are finished, once: a benchmark that nobody runs for weeks still
// works when somebody does.
func TestMeasure(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	parts := []string{"end-to-end", "peer", "submit-and-poll", "ceiling", "latency", "backlog"}
	s, err := readSettings([]string{"-rounds=1", "-scale=0.01", "-parts=" + strings.Join(parts, ","), "-out=" + folder})
	if err != nil {
		t.Fatal(err)
	}
	s.turns, s.built, s.unflushed = 1, programs(t), true
	var said strings.Builder
	if err := measure(t.Context(), s, &said); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	t.Log(said.String())
	text, err := os.ReadFile(filepath.Join(folder, "latest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got result
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	// Two hundred jobs: all but Postgres may spend less than the 10 ms that processors are told in.
	mayBeNothing := []string{"redis-bytes", "cpu-redis", "cpu-worker", "cpu-api", "cpu-load"}
	for _, want := range catalogue {
		i := slices.IndexFunc(got.Figures, func(f figureResult) bool { return f.Part == want.part && f.Name == want.name })
		switch {
		case !slices.Contains(parts, want.part):
		case i < 0:
			t.Errorf("%s was not measured", want.key())
		case got.Figures[i].Median <= 0 && !slices.Contains(mayBeNothing, want.name):
			t.Errorf("%s is %v", want.key(), got.Figures[i].Median)
		}
	}
	if len(got.Targets) < len(parts) {
		t.Errorf("%d targets were looked at for %d parts", len(got.Targets), len(parts))
	}
	checkXML(t, filepath.Join(folder, speedsFile))
	checkXML(t, filepath.Join(folder, latencyFile))
}

// So does the other one, at its smallest, and every figure of it is found.
func TestMeasureHistory(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	rows, s, err := readHistorySettings([]string{"-rows=20000", "-rounds=1", "-scale=0.004", "-out=" + folder})
	if err != nil {
		t.Fatal(err)
	}
	s.built, s.unflushed = programs(t), true
	var said strings.Builder
	if err := measureHistory(t.Context(), rows, s, &said); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	t.Log(said.String())
	text, err := os.ReadFile(filepath.Join(folder, "history.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got result
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Targets) != len(historyTargets) {
		t.Errorf("%d of %d targets were looked at", len(got.Targets), len(historyTargets))
	}
	const banks, besides = 3, 3 // a bank's cold pages, and the size of all
	if want := banks * (3*len(kinds) + besides); len(got.Figures) < want {
		t.Errorf("%d figures, want %d and more", len(got.Figures), want)
	}
	for _, f := range got.Figures {
		if f.Median <= 0 && f.Name != "memory" {
			t.Errorf("%s/%s is %v", f.Part, f.Name, f.Median)
		}
	}
	checkXML(t, filepath.Join(folder, "history.svg"))
}

// built builds the programs, which the tests share; testenv removes them.
var built = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "passbook-bench-")
	if err != nil {
		return "", err
	}
	testenv.AtEnd(func() error { return os.RemoveAll(folder) })
	return folder, buildPrograms(context.Background(), folder)
})

func programs(t *testing.T) string {
	t.Helper()
	folder, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// Pages that are not what was asked for are told from those that are.
func TestRightPage(t *testing.T) {
	t.Parallel()
	day := func(d int) time.Time { return time.Date(2024, 1, d, 0, 0, 0, 0, time.UTC) }
	const three = `{"data":[{"seq":3,"type":"deposit","created_at":"2024-01-03T00:00:00Z"},
		{"seq":2,"type":"withdrawal","created_at":"2024-01-02T00:00:00Z"},{"seq":1,"type":"deposit","created_at":"2024-01-01T00:00:00Z"}]}`
	tests := map[string]struct {
		page  statement.Page
		last  int64
		right bool
	}{
		"OK":          {statement.Page{}, 3, true},
		"OK/After":    {statement.Page{After: 4}, 9, true},
		"OK/Time":     {statement.Page{From: day(1), To: day(4)}, 9, true},
		"Short":       {statement.Page{}, 4, false},
		"NotAfter":    {statement.Page{After: 3}, 9, false},
		"WrongOrder":  {statement.Page{Ascending: true}, 3, false},
		"WrongType":   {statement.Page{Type: ledger.Deposit}, 9, false},
		"TooEarly":    {statement.Page{From: day(2), To: day(4)}, 9, false},
		"NotBeforeTo": {statement.Page{From: day(1), To: day(3)}, 9, false},
	}
	for name, test := range tests {
		if err := rightPage([]byte(three), test.page, test.last); (err == nil) != test.right {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMeasure_EndsWhenItIsTold(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := readSettings([]string{"-rounds=1", "-scale=0.01", "-parts=light", "-out=" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.built, s.unflushed = programs(t), true
	output, input := io.Pipe()
	go func() { // until the pipe is closed
		said := make([]byte, 1<<10)
		for {
			n, err := output.Read(said)
			if err != nil {
				return
			}
			if strings.Contains(string(said[:n]), "Starting") {
				cancel()
			}
		}
	}()
	err = measure(ctx, s, input)
	_ = input.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func checkXML(t *testing.T, path string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	for decoder := xml.NewDecoder(file); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	tests := []struct {
		values           []float64
		median, min, max float64
	}{
		{[]float64{3}, 3, 3, 3},
		{[]float64{5, 1, 3}, 3, 1, 5},
		{[]float64{4, 1, 2, 9}, 3, 1, 9},
	}
	for _, test := range tests {
		if got := spreadOf(test.values); got.Median != test.median || got.Min != test.min || got.Max != test.max {
			t.Errorf("%v: got %+v", test.values, got)
		}
	}
}

func TestMean(t *testing.T) {
	t.Parallel()
	if got := mean([]float64{1, 2, 6}); got != 3 {
		t.Errorf("got %v, want 3", got)
	}
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(100-i)*time.Millisecond)
	}
	if got := quantilesOf(times); got != (quantiles{p50: 50, p99: 99}) {
		t.Errorf("got %+v", got)
	}
}

// A round measures a group in turn, each turn a set of figures by itself, and the others
// once. Peaks are the round's, whichever turn they were in.
func TestRound(t *testing.T) {
	t.Parallel()
	var order []string
	measured := 0.0
	noting := func(name, group string) part {
		return part{name: name, group: group, measure: func(_ context.Context, r *round) error {
			order = append(order, name)
			measured++
			r.set(name, "applied", measured)
			r.set(peaksPart, "api", measured) // each larger than the one before
			return nil
		}}
	}
	parts := []part{noting("a", "1"), noting("b", "1"), noting("c", "1"), noting("alone", ""), noting("d", "2"), noting("other", "")}
	for n, want := range []struct {
		order string
		found []figures
	}{
		{"a b c c b a a b c alone d other", []figures{
			{"a/applied": 1, "b/applied": 2, "c/applied": 3, "alone/applied": 10, "d/applied": 11, "other/applied": 12, "memory/api": 12},
			{"c/applied": 4, "b/applied": 5, "a/applied": 6},
			{"a/applied": 7, "b/applied": 8, "c/applied": 9},
		}},
		{"other d alone c b a a b c c b a", []figures{
			{"other/applied": 1, "d/applied": 2, "alone/applied": 3, "c/applied": 4, "b/applied": 5, "a/applied": 6, "memory/api": 12},
			{"a/applied": 7, "b/applied": 8, "c/applied": 9},
			{"c/applied": 10, "b/applied": 11, "a/applied": 12},
		}},
	} {
		order, measured = nil, 0
		r := &rig{settings: settings{parts: parts, rounds: 2, turns: 3}, out: io.Discard}
		found, err := r.round(t.Context(), n)
		if err != nil || strings.Join(order, " ") != want.order || !slices.EqualFunc(found, want.found, maps.Equal) {
			t.Errorf("round %d: measured %q, found %v, %v, want %q, %v", n, order, found, err, want.order, want.found)
		}
	}
}

// A ratio is of one round's figures, and its median decides.
func TestTargets(t *testing.T) {
	t.Parallel()
	rounds := []figures{
		{"end-to-end/applied": 260, "peer/applied": 100, "light/seen-p50": 5},
		{"end-to-end/applied": 120, "peer/applied": 100, "light/seen-p50": 5},
		{"end-to-end/applied": 17, "peer/applied": 10, "light/seen-p50": 4},
	}
	got := summarize(rounds, catalogue, targets).Targets
	if len(got) != 2 {
		t.Fatalf("got %+v", got)
	}
	if ratio := got[0]; ratio.Median != 1.7 || ratio.Min != 1.2 || ratio.Max != 2.6 || !ratio.Reached {
		t.Errorf("ratio: got %+v", ratio)
	}
	if under := got[1]; under.Median != 5 || under.Reached || under.Target != "under 5 ms" {
		t.Errorf("under: got %+v", under)
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for value, want := range map[float64]string{0: "0", 0.123: "0.12", 3: "3", 12.34: "12.3", 123.4: "123", 1234.5: "1,235", 1000000: "1,000,000"} {
		if got := number(value); got != want {
			t.Errorf("%v: got %s, want %s", value, got, want)
		}
	}
}

func TestBind(t *testing.T) {
	t.Parallel()
	got, err := bind(`SELECT $2::text, $1, $2`, []string{"1", "'a'"})
	if want := `SELECT 'a'::text, 1, 'a'`; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	for _, params := range [][]string{{"1"}, {"1", "2", "3"}} {
		if got, err := bind(`SELECT $1, $2`, params); err == nil {
			t.Errorf("%d parameters: got %q, want an error", len(params), got)
		}
	}
}
