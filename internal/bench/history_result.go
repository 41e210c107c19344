package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

var historyTargets = []target{
	{"slowest sort of page, p50", "worst/p50", "", false, true, 2, millis},
	{"slowest sort of page, p99", "worst/p99", "", false, true, 8, millis},
	{"all rows / a hundredth, p50, the worst sort", "worst/growth", "", false, false, 1.5, ""},
	{"deepest page / first page, p50, the worst type", "worst/depth", "", false, false, 1.3, ""},
	{"buffers a page of 20 reads beyond its 20", "worst/beyond", "", false, false, 12, ""},
	{"first page after a restart, p99", "worst/cold", "", false, true, 60, millis},
	{"applying with all rows / with an empty table", "apply/full", "apply/empty", true, false, 0.85, ""},
	{"export", "export/rate", "", true, false, 100_000, "rows/s"},
	{"bytes a transaction, table and indexes", "worst/bytes", "", false, true, 220, "bytes"},
}

// catalogue is every figure of this run.
func (h *history) catalogue() []figure {
	var all []figure
	for _, b := range h.banks {
		for _, k := range kinds {
			all = append(all,
				figure{b.name(), k.name + ", p50", k.name + ", p50", millis},
				figure{b.name(), k.name + ", p99", k.name + ", p99", millis},
				figure{b.name(), k.name + ", buffers", k.name + ", most buffers", "buffers"})
		}
		for _, name := range []string{"cold first page, p50", "cold first page, p99", "coldest first page, p50", "coldest first page, p99"} {
			all = append(all, figure{b.name(), name, name, millis})
		}
		for _, name := range h.named(b, "bytes") {
			all = append(all, figure{b.name(), name, strings.TrimSuffix(strings.TrimPrefix(name, "bytes-"), "bytes"), "bytes/row"})
		}
	}
	return append(all,
		figure{"export", "rate", "CSV", "rows/s"},
		figure{"export", "memory", "what it added to api's peak", "MB"},
		figure{"apply", "empty", "drained, an empty table", perSec},
		figure{"apply", "full", "drained, all rows there", perSec})
}

// named are the figures of a bank whose names begin so.
func (h *history) named(b *bank, prefix string) []string {
	var names []string
	for key := range h.figures {
		if part, name, _ := strings.Cut(key, "/"); part == b.name() && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// write leaves the result as history.json, its targets as a chart, and what was read as a
// table.
func (h *history) write(r result, out io.Writer) error {
	text, err := r.json()
	if err != nil {
		return err
	}
	chart, err := r.chart()
	if err != nil {
		return err
	}
	return writeFiles(h.folder, map[string][]byte{"history.json": text, "history.svg": chart, "history.md": h.table()}, out)
}

// table is what was read, in Markdown.
func (h *history) table() []byte {
	var b bytes.Buffer
	head := func(title string) {
		fmt.Fprintf(&b, "| %s |", title)
		for _, bank := range h.banks {
			fmt.Fprintf(&b, " %s |", bank.name())
		}
		fmt.Fprintf(&b, "\n| --- |%s\n", strings.Repeat(" --- |", len(h.banks)))
	}
	head("p50 / p99, in ms, and the most buffers")
	of := func(bank *bank, name string) string { return number(h.figures[bank.name()+"/"+name]) }
	for _, k := range kinds {
		fmt.Fprintf(&b, "| %s |", k.name)
		for _, bank := range h.banks {
			fmt.Fprintf(&b, " %s / %s, %s |", of(bank, k.name+", p50"), of(bank, k.name+", p99"), of(bank, k.name+", buffers"))
		}
		fmt.Fprintln(&b)
	}
	for _, cold := range [][2]string{
		{"first page after a restart", "cold first page"},
		{"first page after a restart, the kernel's memory emptied", "coldest first page"},
	} {
		fmt.Fprintf(&b, "| %s |", cold[0])
		for _, bank := range h.banks {
			fmt.Fprintf(&b, " %s / %s |", of(bank, cold[1]+", p50"), of(bank, cold[1]+", p99"))
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintln(&b)
	head("bytes a transaction")
	for _, name := range h.named(h.banks[0], "bytes") {
		label := strings.TrimPrefix(name, "bytes-")
		if label == "bytes" {
			label = "all"
		}
		fmt.Fprintf(&b, "| %s |", label)
		for _, bank := range h.banks {
			fmt.Fprintf(&b, " %s |", of(bank, name))
		}
		fmt.Fprintln(&b)
	}
	return b.Bytes()
}
