//go:build mutants

package mutants_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	rounds = flag.Int("rounds", 1, "how often each checker has to notice each mutant")
	bound  = flag.Duration("bound", time.Minute, "how long a checker may take to notice, its build apart")
)

const (
	// passBound is how long a checker may take where there is nothing to notice.
	passBound = 5 * time.Minute
	// checkBound is for a checker and its build.
	checkBound = 20 * time.Minute
)

// Every checker passes without a mutation, and fails with it, every time, within
// the bound.
func TestMutants(t *testing.T) {
	folder, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM) // so that an interrupt cleans up too
	defer stop()
	plain := goTree{folder: folder, temp: t.TempDir()}
	unmutated := map[string]outcome{} // by checker
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			mutant := m.plant(ctx, t, folder)
			for _, c := range m.checkers {
				if _, known := unmutated[c]; !known {
					unmutated[c] = plain.check(ctx, c, passBound)
				}
				if o := unmutated[c]; o.verdict != passed {
					m.report(t, c, outcome{verdict: unsound, said: fmt.Sprintf("%s without the mutation: %s", o.verdict, o.said), took: o.took})
					continue
				}
				for range *rounds {
					if o := mutant.check(ctx, c, *bound); !m.report(t, c, o) {
						break
					}
				}
			}
		})
	}
}

// report prints a line of the table and returns whether the mutant was noticed.
func (m mutation) report(t *testing.T, checker string, o outcome) bool {
	t.Helper()
	fmt.Printf("%-10s %5.1fs  %-50s %-36s %s\n", o.verdict, o.took.Seconds(), m.name, m.promise, shortened(checker))
	if o.verdict == noticed {
		const width = 120
		fmt.Printf("%18s %.*s\n", "", width, o.said)
		return true
	}
	t.Errorf("%s: %s: %s\n%s", m.name, checker, o.verdict, o.said)
	return false
}

// shortened is a checker without what all of them have.
func shortened(checker string) string {
	return strings.NewReplacer("-run=", "", "^", "", "$", "", "./internal/", "").Replace(checker)
}

// verdict is how a checker ended.
type verdict string

const (
	noticed  verdict = "noticed"   // a test failed
	passed   verdict = "SURVIVED"  // all passed, which is well without a mutation only
	idle     verdict = "NO TEST"   // none ran: the checker is misspelt
	unbuilt  verdict = "UNBUILT"   // it does not compile, or what it tests does not start
	tooLate  verdict = "TOO LATE"  // the bound passed first
	unstable verdict = "NO ANSWER" // it failed, and no test of it did
	unsound  verdict = "UNSOUND"   // it does not pass without a mutation
)

// outcome is what one run of a checker came to.
type outcome struct {
	verdict verdict
	said    string // by the first test that failed, or by the compiler
	took    time.Duration
}

// goTree is the repository as the go command sees it.
type goTree struct {
	folder  string
	temp    string // where its processes leave what they leave
	overlay string // of a mutant's files over the repository's; empty for none
}

// plant writes the mutant beside the repository and has it built: one that does
// not compile would fail every test.
func (m mutation) plant(ctx context.Context, t *testing.T, folder string) goTree {
	t.Helper()
	texts, err := m.mutate()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for file, text := range texts {
		replace[filepath.Join(folder, file)] = filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	mutant := goTree{folder: folder, temp: t.TempDir(), overlay: filepath.Join(dir, "overlay.json")}
	if err := os.WriteFile(mutant.overlay, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	// As the tests of the whole system build it, some with the race detector and
	// some without, within their own time.
	for _, build := range [][]string{{"build", "-race"}, {"build"}} {
		if out, err := mutant.run(ctx, append(build, "./cmd/...")...).CombinedOutput(); err != nil {
			t.Fatalf("the mutant does not build: %v\n%s", err, out)
		}
	}
	return mutant
}

// run returns a go command that builds the mutant, as do the tests that the command runs.
func (g goTree) run(ctx context.Context, args ...string) *exec.Cmd {
	const grace = 10 * time.Second
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = g.folder
	flags := os.Getenv("GOFLAGS") + " -buildvcs=false"
	if g.overlay != "" {
		flags += " -overlay=" + g.overlay
	}
	cmd.Env = append(os.Environ(), "GOFLAGS="+flags, "TMPDIR="+g.temp)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = grace
	return cmd
}

// check runs a checker, which has that long.
func (g goTree) check(ctx context.Context, checker string, within time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, checkBound)
	defer cancel()
	args := []string{"test", "-json", "-race", "-vet=off", "-count=1", fmt.Sprintf("-timeout=%v", within)}
	cmd := g.run(ctx, append(args, strings.Fields(checker)...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	o := judge(bytes.NewReader(stdout))
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended || ctx.Err() != nil {
		o = outcome{verdict: unstable, said: fmt.Sprint(err, ctx.Err())}
	}
	o.said += stderr.String()
	return o
}

// event is a line of go test -json.
type event struct {
	Action      string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

var (
	// said is what a test says as it fails.
	said = regexp.MustCompile(`^ *\w+\.go:\d+: `)
	// notItself is a failure of what a test needs: servers, programs.
	notItself = regexp.MustCompile(`\.go:\d+: (testenv|build): `)
)

// judge reads what a checker did.
func judge(lines io.Reader) outcome {
	var (
		o          outcome
		ran, timed bool
		failed     []string
		says       = map[string][]string{} // by test
		compiler   strings.Builder
	)
	for decoder := json.NewDecoder(bufio.NewReader(lines)); ; {
		var e event
		if decoder.Decode(&e) != nil { // its end, or a go command that was killed
			break
		}
		switch {
		case e.Action == "build-output":
			compiler.WriteString(e.Output)
		case e.FailedBuild != "":
			return outcome{verdict: unbuilt, said: compiler.String()}
		case e.Action == "run":
			ran = true
		case e.Action == "output":
			timed = timed || strings.HasPrefix(e.Output, "panic: test timed out")
			if said.MatchString(e.Output) {
				says[e.Test] = append(says[e.Test], strings.TrimSpace(e.Output))
			}
		case e.Action == "fail" && e.Test != "":
			failed = append(failed, e.Test)
		case e.Action == "fail":
			o.verdict, o.took = unstable, time.Duration(e.Elapsed*float64(time.Second))
		case e.Action == "pass" && e.Test == "":
			o.verdict, o.took = passed, time.Duration(e.Elapsed*float64(time.Second))
		}
	}
	for _, test := range failed {
		if len(says[test]) > 0 && o.said == "" {
			o.said = says[test][0]
		}
		if slices.ContainsFunc(says[test], notItself.MatchString) {
			return outcome{verdict: unbuilt, said: strings.Join(says[test], "\n")}
		}
	}
	switch {
	case !ran:
		o.verdict = idle
	case timed:
		o.verdict = tooLate
	case len(failed) > 0:
		o.verdict = noticed
	}
	return o
}
