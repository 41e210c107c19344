package history

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/passbook/passbook/internal/bench/report"
)

// targets are what `make bench-history` should reach.
var targets = []report.Target{
	{Label: "slowest sort of page, p50", Of: "worst/p50", Strictly: true, Bound: 2, Unit: report.Millis},
	{Label: "slowest sort of page, p99", Of: "worst/p99", Strictly: true, Bound: 8, Unit: report.Millis},
	{Label: "all rows / a hundredth, p50, the worst sort", Of: "worst/growth", Bound: 1.5},
	{Label: "deepest page / first page, p50, the worst type", Of: "worst/depth", Bound: 1.3},
	{Label: "buffers a page of 20 reads beyond its 20", Of: "worst/beyond", Bound: 12},
	{Label: "first page after a restart, p99", Of: "worst/cold", Strictly: true, Bound: 60, Unit: report.Millis},
	{Label: "applying with all rows / with an empty table", Of: "apply/full", Against: "apply/empty", AtLeast: true, Bound: 0.85},
	{Label: "export", Of: "export/rate", AtLeast: true, Bound: 100_000, Unit: "rows/s"},
	{Label: "bytes a transaction, table and indexes", Of: "worst/bytes", Strictly: true, Bound: 220, Unit: "bytes"},
}

// catalogue is every figure of this run.
func (h *run) catalogue() []report.Figure {
	var all []report.Figure
	add := func(part, name, label, unit string) {
		all = append(all, report.Figure{Part: part, Name: name, Label: label, Unit: unit})
	}
	for _, b := range h.datasets {
		for _, k := range kinds {
			add(b.name(), k.name+", p50", k.name+", p50", report.Millis)
			add(b.name(), k.name+", p99", k.name+", p99", report.Millis)
			add(b.name(), k.name+", buffers", k.name+", most buffers", "buffers")
		}
		for _, name := range []string{"cold first page, p50", "cold first page, p99", "coldest first page, p50", "coldest first page, p99"} {
			add(b.name(), name, name, report.Millis)
		}
		for _, name := range h.named(b, "bytes") {
			add(b.name(), name, strings.TrimSuffix(strings.TrimPrefix(name, "bytes-"), "bytes"), "bytes/row")
		}
	}
	add("export", "rate", "CSV", "rows/s")
	add("export", "memory", "what it added to api's peak", "MB")
	add("apply", "empty", "drained, an empty table", report.JobsPerSec)
	add("apply", "full", "drained, all rows there", report.JobsPerSec)
	return all
}

// named are the figures of a dataset whose names begin with prefix.
func (h *run) named(b *dataset, prefix string) []string {
	var names []string
	for key := range h.figures {
		if part, name, _ := strings.Cut(key, "/"); part == b.name() && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// write writes the result as history.json, its targets as a chart and the reads as a
// table.
func (h *run) write(r report.Result) error {
	text, err := r.JSON()
	if err != nil {
		return err
	}
	chart, err := r.Chart()
	if err != nil {
		return err
	}
	return report.WriteFiles(h.settings.Folder, map[string][]byte{"history.json": text, "history.svg": chart, "history.md": h.table()}, h.Out)
}

// table is the figures of the reads, in Markdown.
func (h *run) table() []byte {
	var b bytes.Buffer
	head := func(title string) {
		fmt.Fprintf(&b, "| %s |", title)
		for _, d := range h.datasets {
			fmt.Fprintf(&b, " %s |", d.name())
		}
		fmt.Fprintf(&b, "\n| --- |%s\n", strings.Repeat(" --- |", len(h.datasets)))
	}
	head("p50 / p99, in ms, and the most buffers")
	of := func(d *dataset, name string) string { return report.Number(h.figures[d.name()+"/"+name]) }
	for _, k := range kinds {
		fmt.Fprintf(&b, "| %s |", k.name)
		for _, d := range h.datasets {
			fmt.Fprintf(&b, " %s / %s, %s |", of(d, k.name+", p50"), of(d, k.name+", p99"), of(d, k.name+", buffers"))
		}
		fmt.Fprintln(&b)
	}
	for _, cold := range [][2]string{
		{"first page after a restart", "cold first page"},
		{"first page after a restart, the kernel's memory emptied", "coldest first page"},
	} {
		fmt.Fprintf(&b, "| %s |", cold[0])
		for _, d := range h.datasets {
			fmt.Fprintf(&b, " %s / %s |", of(d, cold[1]+", p50"), of(d, cold[1]+", p99"))
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintln(&b)
	head("bytes a transaction")
	for _, name := range h.named(h.datasets[0], "bytes") {
		label := strings.TrimPrefix(name, "bytes-")
		if label == "bytes" {
			label = "all"
		}
		fmt.Fprintf(&b, "| %s |", label)
		for _, d := range h.datasets {
			fmt.Fprintf(&b, " %s |", of(d, name))
		}
		fmt.Fprintln(&b)
	}
	return b.Bytes()
}
