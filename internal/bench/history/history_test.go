package history

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/bench/benchtest"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

func TestMain(m *testing.M) {
	benchtest.Main(m)
}

// The smallest run measures every figure.
func TestMeasure(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	s, err := ReadSettings([]string{"-rows=20000", "-rounds=1", "-scale=0.004", "-out=" + folder})
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
	got := benchtest.Result(t, folder, "history.json")
	if len(got.Targets) != len(targets) {
		t.Errorf("%d of %d targets were measured", len(got.Targets), len(targets))
	}
	const datasets, others = 3, 3 // the figures of cold pages, and the size
	if want := datasets * (3*len(kinds) + others); len(got.Figures) < want {
		t.Errorf("%d figures, want %d and more", len(got.Figures), want)
	}
	for _, f := range got.Figures {
		if f.Median <= 0 && f.Name != "memory" {
			t.Errorf("%s/%s is %v", f.Part, f.Name, f.Median)
		}
	}
	if _, err := os.Stat(filepath.Join(folder, "history.svg")); err != nil {
		t.Error(err)
	}
}

// A page that is not what was asked for fails the check.
func TestCheckPage(t *testing.T) {
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
		if err := checkPage([]byte(three), test.page, test.last); (err == nil) != test.right {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
