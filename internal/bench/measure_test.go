package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/report"
)

// A round measures the parts of a group in turn, several times, and the other parts
// once. Each pass over a group has its own figures; peaks are of the whole round.
func TestRound(t *testing.T) {
	t.Parallel()
	var order []string
	measured := 0.0
	noting := func(name, group string) part {
		return part{name: name, group: group, measure: func(_ context.Context, p *pass) error {
			order = append(order, name)
			measured++
			p.set(name, "applied", measured)
			p.set(peaksPart, "api", measured) // each larger than the one before
			return nil
		}}
	}
	parts := []part{noting("a", "1"), noting("b", "1"), noting("c", "1"), noting("alone", ""), noting("d", "2"), noting("other", "")}
	for n, want := range []struct {
		order string
		found []report.Figures
	}{
		{"a b c c b a a b c alone d other", []report.Figures{
			{"a/applied": 1, "b/applied": 2, "c/applied": 3, "alone/applied": 10, "d/applied": 11, "other/applied": 12, "memory/api": 12},
			{"c/applied": 4, "b/applied": 5, "a/applied": 6},
			{"a/applied": 7, "b/applied": 8, "c/applied": 9},
		}},
		{"other d alone c b a a b c c b a", []report.Figures{
			{"other/applied": 1, "d/applied": 2, "alone/applied": 3, "c/applied": 4, "b/applied": 5, "a/applied": 6, "memory/api": 12},
			{"a/applied": 7, "b/applied": 8, "c/applied": 9},
			{"c/applied": 10, "b/applied": 11, "a/applied": 12},
		}},
	} {
		order, measured = nil, 0
		r := &measurement{
			Base:     &environment.Base{Config: environment.Config{Out: io.Discard}},
			settings: settings{parts: parts, rounds: 2, passes: 3},
		}
		found, err := r.round(t.Context(), n)
		if err != nil || strings.Join(order, " ") != want.order || !slices.EqualFunc(found, want.found, maps.Equal) {
			t.Errorf("round %d: measured %q, found %v, %v, want %q, %v", n, order, found, err, want.order, want.found)
		}
	}
}
