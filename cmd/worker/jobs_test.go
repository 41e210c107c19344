package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// A long table is written in parts, so its memory is bounded.
func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	list := (&invocation{stdout: &out}).table("JOB\tREASON")
	for range maxAligned - 1 {
		list.row("%d\t%s\n", 1, "x")
	}
	if out.Len() > 0 {
		t.Errorf("wrote %q before the rows were aligned", out.String())
	}
	list.row("%d\t%s\n", 1, "x")
	if lines := strings.Count(out.String(), "\n"); lines != maxAligned+1 {
		t.Errorf("%d lines are written, want %d and the head", lines, maxAligned)
	}
	list.row("%s\t%s\n", "a longer job", "y")
	if err := list.end(); err != nil || !strings.HasPrefix(out.String(), "JOB  REASON\n1    x\n") || !strings.HasSuffix(out.String(), "\na longer job  y\n") {
		t.Errorf("wrote %.40q … %q, %v", out.String(), out.String()[out.Len()-20:], err)
	}
}

// An error of a part is not lost.
func TestTable_Fails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	list := (&invocation{stdout: &failing{err: full}}).table("JOB\tREASON")
	for range maxAligned {
		list.row("%d\t%s\n", 1, "x")
	}
	if err := list.end(); !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
}

// failing fails once.
type failing struct{ err error }

func (f *failing) Write(p []byte) (int, error) {
	err := f.err
	f.err = nil
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
