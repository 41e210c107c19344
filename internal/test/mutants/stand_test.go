// Package mutants takes the guards of Passbook's promises away, one at a time,
// and checks that a test notices: a promise that no test holds is prose. Running
// the list takes minutes and is behind a build tag (make mutants); that it still
// stands is tested with everything else.
package mutants_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is where the repository's files are, from here.
const root = "../../.."

// A mutation whose text has moved on proves nothing any more.
func TestMutationsStand(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			if names[m.name] {
				t.Error("the name stands twice")
			}
			names[m.name] = true
			if len(m.checkers) == 0 {
				t.Error("nothing checks it")
			}
			if _, err := m.mutate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// mutate returns the mutated files' texts, by their paths from root.
func (m mutation) mutate() (map[string]string, error) {
	texts := map[string]string{}
	for _, e := range m.edits {
		if filepath.Ext(e.file) != ".go" && filepath.Dir(e.file) != "migrations" {
			return nil, fmt.Errorf("no build reads %s, so its tests read the original", e.file)
		}
		text, begun := texts[e.file]
		if !begun {
			original, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			text = string(original)
		}
		if n := strings.Count(text, e.from); n != 1 {
			return nil, fmt.Errorf("%q stands %d times in %s, want once", e.from, n, e.file)
		}
		texts[e.file] = strings.Replace(text, e.from, e.to, 1)
	}
	if len(texts) == 0 {
		return nil, fmt.Errorf("nothing is mutated")
	}
	return texts, nil
}
