package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/bench/benchtest"
	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/report"
)

func TestMain(m *testing.M) {
	benchtest.Main(m)
}

// Parts of every kind measure something and check that their jobs are applied once: a
// benchmark that has not run for weeks still works.
func TestMeasure(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	parts := []string{"end-to-end", "peer", "submit-and-poll", "ceiling", "latency", "backlog", "overload"}
	s, err := readSettings([]string{"-rounds=1", "-scale=0.01", "-parts=" + strings.Join(parts, ","), "-out=" + folder})
	if err != nil {
		t.Fatal(err)
	}
	s.passes, s.Programs, s.Unflushed = 1, programs(t), true
	var said strings.Builder
	s.Out = &said
	if err := measure(t.Context(), s); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	t.Log(said.String())
	got := benchtest.Result(t, folder, report.LatestFile)
	// With two hundred jobs each process, also each of Postgres's, may use less CPU time than the 10 ms in
	// which the kernel counts.
	mayBeNothing := []string{"redis-bytes", "cpu-postgres", "cpu-redis", "cpu-worker", "cpu-api", "cpu-load", "cpu-peer", "refused", "refusal-p99"}
	benchtest.CheckFigures(t, got, report.Catalogue, parts, mayBeNothing)
	if len(got.Targets) < len(parts) {
		t.Errorf("%d targets were measured for %d parts", len(got.Targets), len(parts))
	}
	checkXML(t, filepath.Join(folder, "latest.svg"))
	checkXML(t, filepath.Join(folder, "latency.svg"))
}

func programs(t *testing.T) string {
	t.Helper()
	return benchtest.Programs(t, filepath.Join("..", ".."))
}

func TestMeasure_Canceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := readSettings([]string{"-rounds=1", "-scale=0.01", "-parts=light", "-out=" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Programs, s.Unflushed = programs(t), true
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
	s.Out = input
	err = measure(ctx, s)
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
	defer file.Close() //nolint:errcheck // it was not written to
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

// `make help` lists the parts that PARTS may name.
func TestMakefile_NamesTheParts(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if want := "\n##   " + environment.PartNames(parts()) + "\n"; !bytes.Contains(makefile, []byte(want)) {
		t.Errorf("there is no %q", want)
	}
}
