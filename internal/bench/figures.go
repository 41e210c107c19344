package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// figures are what one round found, by "part/name".
type figures map[string]float64

// figure is one thing that is measured.
type figure struct {
	part, name string
	label      string
	unit       string
}

func (f figure) key() string { return f.part + "/" + f.name }

const (
	perSec  = "jobs/s"
	millis  = "ms"
	percent = "% of a core"
	micros  = "µs/job"
)

// catalogue is every figure, in the order of the table.
var catalogue = slices.Concat([]figure{
	{"end-to-end", "accepted", "accepted", perSec},
	{"end-to-end", "applied", "applied", perSec},
	{"end-to-end", "post-p50", "POST to 202, p50", millis},
	{"end-to-end", "post-p99", "POST to 202, p99", millis},
	{"end-to-end", "finish-p50", "accepted to finished, p50", millis},
	{"end-to-end", "finish-p99", "accepted to finished, p99", millis},
	{"end-to-end", "cpu-postgres", "CPU of Postgres", micros},
	{"end-to-end", "cpu-worker", "CPU of worker", micros},
	{"end-to-end", "cpu-redis", "CPU of Redis", micros},
	{"end-to-end", "cpu-api", "CPU of api", micros},
	{"end-to-end", "cpu-load", "CPU of the load", micros},
	{"peer", "applied", "applied", perSec},
	{"peer", "post-p50", "POST to 201, p50", millis},
	{"peer", "post-p99", "POST to 201, p99", millis},
	{"peer", "cpu-postgres", "CPU of Postgres", micros},
	{"submit-and-poll", "finished", "finished", perSec},
	{"submit-and-poll", "seen-p50", "POST to finished, as polled, p50", millis},
	{"submit-and-poll", "seen-p99", "POST to finished, as polled, p99", millis},
	{"submit-and-poll", "finish-p50", "accepted to finished, p50", millis},
	{"submit-and-poll", "finish-p99", "accepted to finished, p99", millis},
	{"submit-and-poll", "looks", "polls", "a job"},
	{"accepts", "accepted", "accepted, no worker there", perSec},
	{"ceiling", "applied", "applied, by the faster insert", perSec},
	{"ceiling", "batched", "applied, Passbook's insert of many", perSec},
	{"ceiling", "plain", "applied, a plain insert", perSec},
	{"ceiling", "run-p50", "accept and apply, by the faster insert, p50", millis},
	{"ceiling", "run-p99", "accept and apply, by the faster insert, p99", millis},
	{"hot", "accepted", "accepted", perSec},
	{"hot", "applied", "applied", perSec},
	{"hot", "post-p50", "POST to 202, p50", millis},
	{"hot", "post-p99", "POST to 202, p99", millis},
	{"hot", "finish-p50", "accepted to finished, p50", millis},
	{"hot", "finish-p99", "accepted to finished, p99", millis},
	{"peer-hot", "applied", "applied", perSec},
	{"peer-hot", "post-p50", "POST to 201, p50", millis},
	{"peer-hot", "post-p99", "POST to 201, p99", millis},
	{"skew", "zipf-applied", "Zipf as fast as it goes, applied", perSec},
	{"skew", "pace", "pace of the next four", perSec},
	{"skew", "uniform-cold-p50", "uniform, cold accounts' wait, p50", millis},
	{"skew", "uniform-cold-p99", "uniform, cold accounts' wait, p99", millis},
	{"skew", "zipf-cold-p50", "Zipf, cold accounts' wait, p50", millis},
	{"skew", "zipf-cold-p99", "Zipf, cold accounts' wait, p99", millis},
}, latencyFigures(), []figure{
	{"light", "seen-p50", "POST to finished, as polled, p50", millis},
	{"light", "seen-p99", "POST to finished, as polled, p99", millis},
	{"light", "rest-ours", "at rest, api, worker and Redis", percent},
	{"light", "rest-api", "at rest, api", percent},
	{"light", "rest-worker", "at rest, worker", percent},
	{"light", "rest-redis", "at rest, Redis", percent},
	{"light", "rest-postgres", "at rest, Postgres", percent},
	{"peer-light", "post-p50", "POST to 201, p50", millis},
	{"peer-light", "post-p99", "POST to 201, p99", millis},
	{"scale-out", "plain", "1 api, 1 worker, 16 partitions", perSec},
	{"scale-out", "workers-2", "2 workers", perSec},
	{"scale-out", "workers-4", "4 workers", perSec},
	{"scale-out", "apis-2", "2 apis", perSec},
	{"scale-out", "partitions-4", "4 partitions", perSec},
	{"scale-out", "partitions-64", "64 partitions", perSec},
	{"backlog", "accepted", "accepted, no worker there", perSec},
	{"backlog", "drained", "drained", perSec},
	{"backlog", "end-to-end", "end to end, just before and after", perSec},
	{"backlog", "redis-bytes", "Redis's memory", "bytes/job"},
	{"memory", "api", "peak of api", "MB"},
	{"memory", "worker", "peak of worker", "MB"},
	{"memory", "peer", "peak of the peer", "MB"},
})

// line says a part's figures of one round.
func (f figures) line(part string) string {
	var b strings.Builder
	for _, c := range catalogue {
		if value, ok := f[c.key()]; ok && c.part == part {
			fmt.Fprintf(&b, "%s %s %s; ", c.label, number(value), c.unit)
		}
	}
	return b.String()
}

// target is a figure to reach: one of the catalogue, or the ratio of two.
type target struct {
	label       string
	of, against string // keys; against is empty where the figure itself counts
	atLeast     bool   // else at most
	strictly    bool   // under, that is
	bound       float64
	unit        string
}

var targets = []target{
	{"end to end / synchronous peer, 1,000 accounts", "end-to-end/applied", "peer/applied", true, false, 1.7, ""},
	{"one hot account / synchronous peer on one account", "hot/applied", "peer-hot/applied", true, false, 4, ""},
	{"submit and poll / synchronous peer, 1,000 accounts", "submit-and-poll/finished", "peer/applied", true, false, 0.7, ""},
	{"end to end / pgbench ceiling", "end-to-end/applied", "ceiling/applied", true, false, 1.3, ""},
	{"accepts alone (workers off) / synchronous peer", "accepts/accepted", "peer/applied", true, false, 3.9, ""},
	{"drain of a backlog / end to end", "backlog/drained", "backlog/end-to-end", true, false, 1.5, ""},
	{"4 workers / 1 worker, end to end", "scale-out/workers-4", "scale-out/plain", true, false, 0.95, ""},
	{"cold account's wait, Zipf / uniform load, p99", "skew/zipf-cold-p99", "skew/uniform-cold-p99", false, false, 1.5, ""},
	{"accepted to finished at 60 % of the peak rate, p50", "latency/60-p50", "", false, false, 10, millis},
	{"accepted to finished at 60 % of the peak rate, p99", "latency/60-p99", "", false, false, 50, millis},
	{"POST to finished at light load, p50", "light/seen-p50", "", false, true, 5, millis},
	{"POST to finished at light load, p99", "light/seen-p99", "", false, true, 15, millis},
	{"worker, api and Redis at rest, of a core", "light/rest-ours", "", false, true, 2, "%"},
	{"Postgres's CPU a job, end to end", "end-to-end/cpu-postgres", "", false, false, 200, "µs"},
	{"Redis's memory a queued job", "backlog/redis-bytes", "", false, true, 650, "bytes"},
	{"memory of api, peak", "memory/api", "", false, true, 100, "MB"},
	{"memory of worker, peak", "memory/worker", "", false, true, 100, "MB"},
}

// in is what a round found, or one more turn of it; ratios are of the two figures of one,
// which ran minutes apart at most.
func (t target) in(round figures) (value float64, ok bool) {
	value, ok = round[t.of]
	if t.against == "" || !ok {
		return value, ok
	}
	against, ok := round[t.against]
	return value / against, ok && against > 0
}

func (t target) reached(value float64) bool {
	switch {
	case t.atLeast:
		return value >= t.bound
	case t.strictly:
		return value < t.bound
	default:
		return value <= t.bound
	}
}

// says is the bound in words.
func (t target) says() string {
	word := "at most"
	switch {
	case t.atLeast:
		word = "at least"
	case t.strictly:
		word = "under"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %g %s", word, t.bound, t.unit))
}

// quantiles are of a number of times, in milliseconds.
type quantiles struct{ p50, p99 float64 }

func quantilesOf(times []time.Duration) quantiles {
	sorted := slices.Sorted(slices.Values(times))
	at := func(share float64) float64 {
		if len(sorted) == 0 {
			return 0
		}
		return sorted[int(math.Ceil(share*float64(len(sorted))))-1].Seconds() * 1000
	}
	return quantiles{p50: at(0.50), p99: at(0.99)}
}

// spread is what the rounds found of one figure.
type spread struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Rounds []float64 `json:"rounds"` // in their order
}

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1], Rounds: values}
}

func mean(values []float64) (sum float64) {
	for _, v := range values {
		sum += v / float64(len(values))
	}
	return sum
}

// number writes three digits that count, or all before the point.
func number(value float64) string {
	switch size := math.Abs(value); {
	case size >= 1000:
		return thousands(int64(math.Round(value)))
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

func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
