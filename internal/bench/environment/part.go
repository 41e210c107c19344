package environment

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Part is one thing that a run measures.
type Part interface{ Name() string }

// PartNames are the names of parts, with commas between.
func PartNames[P Part](parts []P) string {
	var names []string
	for _, p := range parts {
		names = append(names, p.Name())
	}
	return strings.Join(names, ",")
}

// ChooseParts returns those of all parts whose names are in names, with commas between; all where
// names is empty. It returns an error for a name that no part has.
func ChooseParts[P Part](all []P, names string) ([]P, error) {
	if names == "" {
		return all, nil
	}
	wanted := strings.Split(names, ",")
	for _, name := range wanted {
		if !slices.ContainsFunc(all, func(p P) bool { return p.Name() == name }) {
			return nil, fmt.Errorf("no part %q; there are %s", name, PartNames(all))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p P) bool { return !slices.Contains(wanted, p.Name()) }), nil
}

// MeasurePart measures a part, in a bounded time.
func MeasurePart(ctx context.Context, p Part, bound time.Duration, measure func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := measure(bounded)
	switch {
	case ctx.Err() != nil: // an error that the end of ctx has caused says nothing
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%s: %w", p.Name(), err)
	}
	return nil
}
