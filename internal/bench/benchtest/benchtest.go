// Package benchtest has what the tests of the benchmark's commands share.
package benchtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/report"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Main runs a package's tests.
func Main(m *testing.M) {
	// The thread that starts programs lives as long as the process.
	testenv.Main(m, goleak.IgnoreTopFunction("github.com/passbook/passbook/internal/bench/environment.launch"))
}

var (
	build    sync.Once
	programs string
	buildErr error
)

// Programs returns a folder with the programs of a run, which it builds once for all tests of a package.
// root is the repository's folder. testenv removes the programs.
func Programs(t testing.TB, root string) string {
	t.Helper()
	build.Do(func() { programs, buildErr = testenv.Programs(root, "plain", root, environment.Packages...) })
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return programs
}

// Result reads the JSON of a run at any scale.
func Result(t testing.TB, folder, file string) (r report.Result) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// CheckFigures fails the test unless a run has every figure of its parts, each above 0 unless its
// name is in mayBeNothing.
func CheckFigures(t testing.TB, r report.Result, catalogue []report.Figure, parts, mayBeNothing []string) {
	t.Helper()
	for _, want := range catalogue {
		i := slices.IndexFunc(r.Figures, func(f report.FigureResult) bool { return f.Part == want.Part && f.Name == want.Name })
		switch {
		case !slices.Contains(parts, want.Part):
		case i < 0:
			t.Errorf("%s was not measured", want.Key())
		case r.Figures[i].Median <= 0 && !slices.Contains(mayBeNothing, want.Name):
			t.Errorf("%s is %v", want.Key(), r.Figures[i].Median)
		}
	}
}
