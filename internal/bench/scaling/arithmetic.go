package scaling

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/passbook/passbook/internal/bench/report"
	"github.com/passbook/passbook/internal/boot"
)

// What the arithmetic takes for given. The document says each of them.
const (
	share     = 0.6 // of what a part carries at most, for which it is sized: beyond, jobs wait for long
	hostCores = 4   // of a host with one API or one worker
	leastOf   = 2   // APIs and workers: one may fail
	mostCores = 64  // of a primary
	gigabit   = 125e6
	daySecs   = 86_400
	batchJobs = 64 // that share a flush at most, on the way in and again when they are applied
)

// number writes a value with three significant digits, a small one too: the reader calculates with it.
func number(value float64) string {
	if size := math.Abs(value); size > 0 && size < 1 {
		return fmt.Sprintf("%.3g", value)
	}
	return report.Number(value)
}

// limit is how many jobs a second one unit of something carries at most.
type limit struct {
	what, how string
	rate      float64
	then      string
}

// limits is their table.
func (f figures) limits() string {
	var b strings.Builder
	fmt.Fprint(&b, "| one | carries, jobs a second | that is | then |\n| --- | --- | --- | --- |\n")
	for _, l := range f.allLimits() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.what, number(l.rate), l.how, l.then)
	}
	return b.String()
}

// allLimits are sorted: what saturates first comes first.
func (f figures) allLimits() []limit {
	cores := float64(f.Machine.CPUs)
	all := []limit{{"account", "measured: one after another", f.of("hot/applied"), "nothing helps: spread the money over several accounts"}}
	add := func(what, then string, amount, each float64, how string, values ...any) {
		if each > 0 { // a try may have measured nothing
			all = append(all, limit{what, fmt.Sprintf(how, values...), amount / each, then})
		}
	}
	byCPU := func(what, process, then string) {
		add(what, then, cores*1e6, f.cpu(process), "%d × 1,000,000 / %s", f.Machine.CPUs, f.says(plain+"/cpu-"+process))
	}
	of := fmt.Sprintf(" of %d processors", f.Machine.CPUs)
	byCPU("Postgres primary"+of, "postgres", "more processors, and [then](#where-a-single-primary-ends)")
	byCPU("API"+of, "api", "another API")
	byCPU("worker"+of, "worker", "another worker")
	add("Redis, one thread", "a cluster; then another master", 1e6, f.cpu("redis"), "1,000,000 / %s", f.says(plain+"/cpu-redis"))
	add("disk of Postgres's log", "more jobs share a flush, "+fmt.Sprint(batchJobs)+" at most", 1e6/f.Machine.FlushMicros, f.of("job/flushes"),
		"1,000,000 / %s / %s", number(f.Machine.FlushMicros), f.says("job/flushes"))
	network := func(what string, each float64, how string, values ...any) {
		add(what, "a faster network", gigabit, each, "125,000,000 / "+how, values...)
	}
	log := f.of("job/log-records") + f.of("job/log-pages")
	network("gigabit to a standby", log, "%s", number(log))
	for _, server := range []string{"Postgres", "Redis"} {
		key := strings.ToLower(server)
		each := max(f.of("job/to-"+key), f.of("job/from-"+key)) // both ways at once
		network("gigabit to "+server, each, "%s", number(each))
	}
	slices.SortStableFunc(all, func(a, b limit) int { return cmp.Compare(a.rate, b.rate) })
	return all
}

// times are how many of this machine the example is about.
var times = []float64{1, 10, 100}

// line is one of the example: a number for each of times.
type line struct {
	what, how string
	values    []float64
}

// exampleLines follow from each other: a line names by their numbers the lines that it uses.
func (f figures) exampleLines() []line {
	var lines []line
	add := func(what, how string, value func(n int) float64) {
		l := line{what: what, how: how}
		for n := range times {
			l.values = append(l.values, value(n))
		}
		lines = append(lines, l)
	}
	at := func(row, n int) float64 { return lines[row-1].values[n] }
	each := func(what, key, unit string, per float64) { // line 1, times what one job costs
		add(what, fmt.Sprintf("(1) × %s%s", f.says(key), unit), func(n int) float64 { return at(1, n) * f.of(key) / per })
	}
	processors := func(what, process string) {
		add(what, fmt.Sprintf("(1) × %s / 1,000,000 / %g", f.says(plain+"/cpu-"+process), share),
			func(n int) float64 { return at(1, n) * f.cpu(process) / 1e6 / share })
	}
	hosts := func(what string, row int) {
		add(what, fmt.Sprintf("(%d) / %d, rounded up; %d at least", row, hostCores, leastOf),
			func(n int) float64 { return max(leastOf, math.Ceil(at(row, n)/hostCores)) })
	}
	add("jobs a second", "measured, × 10, × 100", func(n int) float64 { return f.rate() * times[n] })
	processors("processors of Postgres", "postgres")
	processors("processors of all APIs", "api")
	processors("processors of all workers", "worker")
	processors("masters of Redis, before rounding up", "redis")
	hosts(fmt.Sprintf("APIs, on hosts of %d processors", hostCores), 3)
	hosts(fmt.Sprintf("workers, on hosts of %d processors", hostCores), 4)
	add("connections to Postgres", fmt.Sprintf("((6) + (7)) × %d", boot.MaxConns), func(n int) float64 { return (at(6, n) + at(7, n)) * boot.MaxConns })
	add("their memory in Postgres, MB", fmt.Sprintf("(8) × %s / 1,000", f.says("job/connection")),
		func(n int) float64 { return at(8, n) * f.of("job/connection") / 1e3 })
	each("Postgres's log, MB a second", "job/log-records", " / 1,000,000", 1e6)
	each("the same just after a checkpoint: more by", "job/log-pages", " / 1,000,000", 1e6)
	each("flushes a second", "job/flushes", "", 1)
	add("of the disk's time, %", fmt.Sprintf("(12) × %s / 10,000", number(f.Machine.FlushMicros)),
		func(n int) float64 { return at(12, n) * f.Machine.FlushMicros / 1e4 })
	each("to Postgres, MB a second", "job/to-postgres", " / 1,000,000", 1e6)
	each("to Redis, MB a second", "job/to-redis", " / 1,000,000", 1e6)
	each("round trips to Redis a second", "job/trips-redis", "", 1)
	each("kept in a day at full speed, GB", "job/kept", " × 86,400 / 1,000,000,000", 1e9/daySecs)
	return lines
}

// example is the arithmetic for 10 and for 100 times this machine.
func (f figures) example() string {
	var b strings.Builder
	fmt.Fprint(&b, "| | | how | this machine | 10 times | 100 times |\n| --- | --- | --- | --- | --- | --- |\n")
	for i, l := range f.exampleLines() {
		fmt.Fprintf(&b, "| %d | %s | %s |", i+1, l.what, l.how)
		for _, value := range l.values {
			fmt.Fprintf(&b, " %s |", number(value))
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// primary is where the processors of one primary end.
func (f figures) primary() string {
	if f.cpu("postgres") == 0 {
		return "Not measured.\n"
	}
	most := mostCores * share * 1e6 / f.cpu("postgres")
	return fmt.Sprintf("A primary of %d processors, sized like that, ends at %d × %g × 1,000,000 / %s = %s jobs a second, %s times this machine.\n",
		mostCores, mostCores, share, f.says(plain+"/cpu-postgres"), number(most), number(most/f.rate()))
}

// pace is what a job costs at the share of the full rate.
func (f figures) pace() string {
	return fmt.Sprintf("Measured at %g %% of the full rate, a job took %s µs of all processes together; at the full rate, %s µs.\n",
		100*share, f.says("paced/cpu"), f.says("paced/cpu-full"))
}
