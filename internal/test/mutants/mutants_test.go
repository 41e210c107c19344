//go:build mutants

package mutants_test

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	rounds = flag.Int("rounds", 1, "how often each checker has to notice each mutant")
	bound  = flag.Duration("bound", 2*time.Minute, "how long a checker may take to notice, its build apart")
	only   = flag.String("only", "", "a regular expression of the names of the mutations to test")
)

// passBound is how long a checker may take where there is nothing to notice.
const passBound = 5 * time.Minute

// Every checker passes without a mutation, and fails with it, every time, within
// the bound. go test -parallel bounds how many mutations are tested at once.
func TestMutants(t *testing.T) {
	chosen, err := choose(*only)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM) // so that an interrupt cleans up too
	t.Cleanup(stop)
	plain := &baseline{tree: newTree(t, nil), outcomes: map[string]func() outcome{}}
	plain.tree.temp = openTemp(t)
	results := &table{rows: len(chosen), began: time.Now()}
	t.Cleanup(results.printMissed) // after the parallel subtests
	for _, m := range chosen {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			defer results.endRow()
			if ctx.Err() != nil {
				t.Fatal("interrupted")
			}
			mutant := m.plant(t, plain.tree)
			for _, c := range m.checkers {
				if o := plain.check(ctx, c); o.verdict != passed {
					o.verdict, o.said = unsound, fmt.Sprintf("%s without the mutation: %s", o.verdict, o.said)
					results.report(t, m, c, o)
					continue
				}
				for range *rounds {
					if o := mutant.check(ctx, c, *bound); !results.report(t, m, c, o) {
						break
					}
				}
			}
		})
	}
}

// choose returns the mutations whose names match. Blanks and underscores are equal, as in go test -run.
func choose(pattern string) ([]mutation, error) {
	underscored := strings.NewReplacer(" ", "_")
	matcher, err := regexp.Compile(underscored.Replace(pattern))
	if err != nil {
		return nil, err
	}
	var chosen []mutation
	for _, m := range mutations {
		if matcher.MatchString(underscored.Replace(m.name)) {
			chosen = append(chosen, m)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no mutation has a name like %q", pattern)
	}
	return chosen, nil
}

// table prints what each checker noticed, and at the end what was missed.
type table struct {
	rows  int
	began time.Time

	mu     sync.Mutex // guards the rest, and keeps lines together
	ended  int        // rows
	missed []string   // lines
}

// report prints a line of the table and returns whether the mutant was noticed.
func (r *table) report(t *testing.T, m mutation, checker string, o outcome) bool {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Sprintf("%-10s %5.1fs  %-50s %-36s %s", o.verdict, o.took.Seconds(), m.name, m.promise, shortened(checker))
	fmt.Println(line)
	if o.verdict == noticed {
		const width = 120
		fmt.Printf("%18s %.*s\n", "", width, o.said)
		return true
	}
	r.missed = append(r.missed, line)
	t.Errorf("%s: %s: %s\n%s", m.name, checker, o.verdict, o.said)
	return false
}

// endRow prints how far the run is.
func (r *table) endRow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended++
	left := time.Since(r.began) / time.Duration(r.ended) * time.Duration(r.rows-r.ended)
	fmt.Printf("%d of %d, about %v left\n", r.ended, r.rows, left.Round(time.Second))
}

func (r *table) printMissed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Printf("%d mutations in %v; not noticed: %d\n", r.ended, time.Since(r.began).Round(time.Second), len(r.missed))
	for _, line := range r.missed {
		fmt.Println(line)
	}
}

// shortened is a checker without what all of them have.
func shortened(checker string) string {
	return strings.NewReplacer("-run=", "", "^", "", "$", "", "./internal/", "").Replace(checker)
}
