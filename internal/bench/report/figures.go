package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Figures are what one round measured, by "part/name".
type Figures map[string]float64

// Figure is one thing that is measured.
type Figure struct {
	Part, Name string
	Label      string
	Unit       string
}

// Key is the figure's in Figures.
func (f Figure) Key() string { return f.Part + "/" + f.Name }

// Units of figures.
const (
	JobsPerSec = "jobs/s"
	Millis     = "ms"
	percent    = "% of a core"
	micros     = "µs/job"
	microsSent = "µs/request"
)

// Catalogue is every figure of `make bench`, in the order of the table.
var Catalogue = slices.Concat([]Figure{
	{"end-to-end", "accepted", "accepted", JobsPerSec},
	{"end-to-end", "applied", "applied", JobsPerSec},
	{"end-to-end", "post-p50", "POST to 202, p50", Millis},
	{"end-to-end", "post-p99", "POST to 202, p99", Millis},
	{"end-to-end", "finish-p50", "accepted to finished, p50", Millis},
	{"end-to-end", "finish-p99", "accepted to finished, p99", Millis},
	{"end-to-end", "cpu-postgres", "CPU of Postgres", micros},
	{"end-to-end", "cpu-worker", "CPU of worker", micros},
	{"end-to-end", "cpu-redis", "CPU of Redis", micros},
	{"end-to-end", "cpu-api", "CPU of api", micros},
	{"end-to-end", "cpu-load", "CPU of the load", micros},
	{"peer", "applied", "applied", JobsPerSec},
	{"peer", "post-p50", "POST to 201, p50", Millis},
	{"peer", "post-p99", "POST to 201, p99", Millis},
	{"peer", "cpu-postgres", "CPU of Postgres", micros},
	{"peer", "cpu-peer", "CPU of the peer", micros},
	{"peer", "cpu-load", "CPU of the load", micros},
	{"submit-and-poll", "finished", "finished", JobsPerSec},
	{"submit-and-poll", "seen-p50", "POST to finished, as polled, p50", Millis},
	{"submit-and-poll", "seen-p99", "POST to finished, as polled, p99", Millis},
	{"submit-and-poll", "finish-p50", "accepted to finished, p50", Millis},
	{"submit-and-poll", "finish-p99", "accepted to finished, p99", Millis},
	{"submit-and-poll", "looks", "polls", "a job"},
	{"submit-and-wait", "finished", "finished", JobsPerSec},
	{"submit-and-wait", "seen-p50", "POST with Prefer: wait to finished, p50", Millis},
	{"submit-and-wait", "seen-p99", "POST with Prefer: wait to finished, p99", Millis},
	{"submit-and-wait", "finish-p50", "accepted to finished, p50", Millis},
	{"submit-and-wait", "finish-p99", "accepted to finished, p99", Millis},
	{"submit-and-wait", "looks", "further requests", "a job"},
	{"submit-and-wait", "cpu-postgres", "CPU of Postgres", micros},
	{"submit-and-wait", "cpu-worker", "CPU of worker", micros},
	{"submit-and-wait", "cpu-redis", "CPU of Redis", micros},
	{"submit-and-wait", "cpu-api", "CPU of api", micros},
	{"submit-and-wait", "cpu-load", "CPU of the load", micros},
	{"accepts", "accepted", "accepted, no worker there", JobsPerSec},
	{"accepts", "cpu-postgres", "CPU of Postgres", micros},
	{"accepts", "cpu-redis", "CPU of Redis", micros},
	{"accepts", "cpu-api", "CPU of api", micros},
	{"accepts", "cpu-load", "CPU of the load", micros},
	{"ceiling", "applied", "applied, by the faster insert", JobsPerSec},
	{"ceiling", "batched", "applied, Passbook's insert of many", JobsPerSec},
	{"ceiling", "plain", "applied, a plain insert", JobsPerSec},
	{"ceiling", "run-p50", "accept and apply, by the faster insert, p50", Millis},
	{"ceiling", "run-p99", "accept and apply, by the faster insert, p99", Millis},
	{"hot", "accepted", "accepted", JobsPerSec},
	{"hot", "applied", "applied", JobsPerSec},
	{"hot", "post-p50", "POST to 202, p50", Millis},
	{"hot", "post-p99", "POST to 202, p99", Millis},
	{"hot", "finish-p50", "accepted to finished, p50", Millis},
	{"hot", "finish-p99", "accepted to finished, p99", Millis},
	{"peer-hot", "applied", "applied", JobsPerSec},
	{"peer-hot", "post-p50", "POST to 201, p50", Millis},
	{"peer-hot", "post-p99", "POST to 201, p99", Millis},
	{"skew", "zipf-applied", "Zipf as fast as it goes, applied", JobsPerSec},
	{"skew", "pace", "pace of the next four", JobsPerSec},
	{"skew", "uniform-cold-p50", "uniform, cold accounts' wait, p50", Millis},
	{"skew", "uniform-cold-p99", "uniform, cold accounts' wait, p99", Millis},
	{"skew", "zipf-cold-p50", "Zipf, cold accounts' wait, p50", Millis},
	{"skew", "zipf-cold-p99", "Zipf, cold accounts' wait, p99", Millis},
}, latencyFigures(), []Figure{
	{"light", "seen-p50", "POST to finished, as polled, p50", Millis},
	{"light", "seen-p99", "POST to finished, as polled, p99", Millis},
	{"light", "held-p50", "POST with Prefer: wait to finished, p50", Millis},
	{"light", "held-p99", "POST with Prefer: wait to finished, p99", Millis},
	{"light", "rest-ours", "at rest, api, worker and Redis", percent},
	{"light", "rest-api", "at rest, api", percent},
	{"light", "rest-worker", "at rest, worker", percent},
	{"light", "rest-redis", "at rest, Redis", percent},
	{"light", "rest-postgres", "at rest, Postgres", percent},
	{"peer-light", "post-p50", "POST to 201, p50", Millis},
	{"peer-light", "post-p99", "POST to 201, p99", Millis},
	{"scale-out", "plain", "1 api, 1 worker, 16 partitions", JobsPerSec},
	{"scale-out", "workers-2", "2 workers", JobsPerSec},
	{"scale-out", "workers-4", "4 workers", JobsPerSec},
	{"scale-out", "apis-2", "2 apis", JobsPerSec},
	{"scale-out", "partitions-4", "4 partitions", JobsPerSec},
	{"scale-out", "partitions-64", "64 partitions", JobsPerSec},
	{"scale-out", "plain-cpu-postgres", "CPU of Postgres, 1 worker", micros},
	{"scale-out", "plain-cpu-worker", "CPU of worker, 1 worker", micros},
	{"scale-out", "plain-cpu-redis", "CPU of Redis, 1 worker", micros},
	{"scale-out", "workers-4-cpu-postgres", "CPU of Postgres, 4 workers", micros},
	{"scale-out", "workers-4-cpu-worker", "CPU of worker, 4 workers", micros},
	{"scale-out", "workers-4-cpu-redis", "CPU of Redis, 4 workers", micros},
	{"backlog", "accepted", "accepted, no worker there", JobsPerSec},
	{"backlog", "drained", "drained", JobsPerSec},
	{"backlog", "end-to-end", "end to end, just before and after", JobsPerSec},
	{"backlog", "redis-bytes", "Redis's memory", "bytes/job"},
	{"overload", "peak", "end to end, just before and after", JobsPerSec},
	{"overload", "offered", "offered, three times as many", JobsPerSec},
	{"overload", "accepted", "accepted", JobsPerSec},
	{"overload", "applied", "applied", JobsPerSec},
	{"overload", "refused", "refused", "%"},
	{"overload", "post-p50", "POST to 202, p50", Millis},
	{"overload", "post-p99", "POST to 202, p99", Millis},
	{"overload", "refusal-p99", "POST to 503, p99", Millis},
	{"overload", "cpu-postgres", "CPU of Postgres", microsSent},
	{"overload", "cpu-worker", "CPU of worker", microsSent},
	{"overload", "cpu-redis", "CPU of Redis", microsSent},
	{"overload", "cpu-api", "CPU of api", microsSent},
	{"overload", "cpu-load", "CPU of the load", microsSent},
	{"memory", "api", "peak of api", "MB"},
	{"memory", "worker", "peak of worker", "MB"},
	{"memory", "peer", "peak of the peer", "MB"},
})

// Shares of the peak rate, in percent, at which latency is measured.
var Shares = []int{20, 40, 60, 80}

// latencyFigures are those of the part latency.
func latencyFigures() []Figure {
	figures := []Figure{{"latency", "peak", "peak, end to end", JobsPerSec}}
	for _, share := range Shares {
		name, at := fmt.Sprintf("%d-", share), fmt.Sprintf(" at %d %% of the peak", share)
		figures = append(figures,
			Figure{"latency", name + "p50", "accepted to finished" + at + ", p50", Millis},
			Figure{"latency", name + "p99", "accepted to finished" + at + ", p99", Millis},
			Figure{"latency", name + "post-p50", "POST to 202" + at + ", p50", Millis},
			Figure{"latency", name + "post-p99", "POST to 202" + at + ", p99", Millis},
			Figure{"latency", name + "busy", "processors busy" + at, "%"},
			Figure{"latency", name + "together", "of the slowest 1 %" + at + ", in one twentieth of the time", "%"})
	}
	return figures
}

// Line is a part's figures of one round, for the log.
func (f Figures) Line(catalogue []Figure, part string) string {
	var b strings.Builder
	for _, c := range catalogue {
		if value, ok := f[c.Key()]; ok && c.Part == part {
			fmt.Fprintf(&b, "%s %s %s; ", c.Label, Number(value), c.Unit)
		}
	}
	return b.String()
}

// Target is a figure to reach: a figure of the catalogue, or the ratio of two.
type Target struct {
	Label    string
	Of       string // key of the figure
	Against  string // key of the figure that it is divided by; empty for the figure itself
	AtLeast  bool   // else at most
	Strictly bool   // under the bound, not at it
	Bound    float64
	Unit     string
}

// Targets are what `make bench` should reach.
var Targets = []Target{
	{"end to end / synchronous peer, 1,000 accounts", "end-to-end/applied", "peer/applied", true, false, 1.7, ""},
	{"one hot account / synchronous peer on one account", "hot/applied", "peer-hot/applied", true, false, 4, ""},
	{"submit and poll / synchronous peer, 1,000 accounts", "submit-and-poll/finished", "peer/applied", true, false, 0.7, ""},
	{"submit and wait / synchronous peer, 1,000 accounts", "submit-and-wait/finished", "peer/applied", true, false, 1, ""},
	{"end to end / pgbench ceiling", "end-to-end/applied", "ceiling/applied", true, false, 1.3, ""},
	{"accepts alone (workers off) / synchronous peer", "accepts/accepted", "peer/applied", true, false, 3.9, ""},
	{"drain of a backlog / end to end", "backlog/drained", "backlog/end-to-end", true, false, 1.5, ""},
	{"4 workers / 1 worker, end to end", "scale-out/workers-4", "scale-out/plain", true, false, 0.95, ""},
	{"cold account's wait, Zipf / uniform load, p99", "skew/zipf-cold-p99", "skew/uniform-cold-p99", false, false, 1.5, ""},
	{"accepted to finished at 60 % of the peak rate, p50", "latency/60-p50", "", false, false, 10, Millis},
	{"accepted to finished at 60 % of the peak rate, p99", "latency/60-p99", "", false, false, 50, Millis},
	{"POST to finished at light load, p50", "light/seen-p50", "", false, true, 5, Millis},
	{"POST with Prefer: wait at light load, p50", "light/held-p50", "", false, true, 5, Millis},
	{"POST to finished at light load, p99", "light/seen-p99", "", false, true, 15, Millis},
	{"worker, api and Redis at rest, of a core", "light/rest-ours", "", false, true, 2, "%"},
	{"Postgres's CPU a job, end to end", "end-to-end/cpu-postgres", "", false, false, 200, "µs"},
	{"Redis's memory a queued job", "backlog/redis-bytes", "", false, true, 650, "bytes"},
	{"applied at three times the peak rate / peak", "overload/applied", "overload/peak", true, false, 0.9, ""},
	{"POST to 202 at three times the peak rate, p99", "overload/post-p99", "", false, true, 250, Millis},
	{"memory of api, peak", "memory/api", "", false, true, 100, "MB"},
	{"memory of worker, peak", "memory/worker", "", false, true, 100, "MB"},
}

// in returns the target's value in one round. Both figures of a ratio are of the
// same round, so they were measured minutes apart at most.
func (t Target) in(round Figures) (value float64, ok bool) {
	value, ok = round[t.Of]
	if t.Against == "" || !ok {
		return value, ok
	}
	against, ok := round[t.Against]
	return value / against, ok && against > 0
}

func (t Target) reached(value float64) bool {
	switch {
	case t.AtLeast:
		return value >= t.Bound
	case t.Strictly:
		return value < t.Bound
	default:
		return value <= t.Bound
	}
}

// says returns the bound in words.
func (t Target) says() string {
	word := "at most"
	switch {
	case t.AtLeast:
		word = "at least"
	case t.Strictly:
		word = "under"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %g %s", word, t.Bound, t.Unit))
}

// Quantiles are of a number of durations, in milliseconds.
type Quantiles struct{ P50, P99 float64 }

// QuantilesOf returns the quantiles of the durations, 0 of none.
func QuantilesOf(times []time.Duration) Quantiles {
	sorted := slices.Sorted(slices.Values(times))
	at := func(share float64) float64 {
		if len(sorted) == 0 {
			return 0
		}
		return sorted[int(math.Ceil(share*float64(len(sorted))))-1].Seconds() * 1000
	}
	return Quantiles{P50: at(0.50), P99: at(0.99)}
}

// Spread is one figure over all rounds.
type Spread struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Rounds []float64 `json:"rounds"` // in their order
}

func spreadOf(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return Spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1], Rounds: values}
}

// Mean returns the mean of the values, 0 of none.
func Mean(values []float64) (sum float64) {
	for _, v := range values {
		sum += v / float64(len(values))
	}
	return sum
}

// Number writes a value with three significant digits, or all before the point.
func Number(value float64) string {
	switch size := math.Abs(value); {
	case size >= 1000:
		return Thousands(int64(math.Round(value)))
	case size >= 100:
		return fmt.Sprintf("%.0f", value)
	case value == math.Trunc(value):
		return fmt.Sprintf("%.0f", value)
	case size >= 10:
		return fmt.Sprintf("%.1f", value)
	default:
		return fmt.Sprintf("%.2f", value)
	}
}

// Thousands writes a count with a comma every three digits.
func Thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", Thousands(n/1000), n%1000)
}

// PerSecond returns the rate of n things in a time.
func PerSecond(n int, took time.Duration) float64 {
	return float64(n) / took.Seconds()
}
