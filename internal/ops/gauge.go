package ops

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Gauge is a gauge whose value counts for some time after each Set. After that /metrics leaves it out.
// So an alert never reads an old value, and absent() detects that the value is unknown.
type Gauge struct {
	desc  *prometheus.Desc
	lasts time.Duration

	mu    sync.Mutex // guards the fields below
	value float64
	until time.Time // the value is unknown from then on; zero before the first Set
}

// NewGauge makes a gauge whose values count for the duration lasts.
func NewGauge(name, help string, lasts time.Duration) *Gauge {
	return &Gauge{desc: prometheus.NewDesc(name, help, nil, nil), lasts: lasts}
}

// Set sets the value, which the caller has just read.
func (g *Gauge) Set(value float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value, g.until = value, time.Now().Add(g.lasts)
}

// Describe implements prometheus.Collector.
func (g *Gauge) Describe(descs chan<- *prometheus.Desc) { descs <- g.desc }

// Collect implements prometheus.Collector.
func (g *Gauge) Collect(metrics chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Now().Before(g.until) {
		metrics <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value)
	}
}

// conditionGauge calls a function at each scrape, and is 1, 0 or absent by its result.
type conditionGauge struct {
	desc *prometheus.Desc
	read func() (isTrue, isKnown bool)
}

// ConditionGauge is 1 while the condition is true, 0 while it is false, and absent while it is not
// known. read must not wait.
func ConditionGauge(name, help string, read func() (isTrue, isKnown bool)) prometheus.Collector {
	return conditionGauge{desc: prometheus.NewDesc(name, help, nil, nil), read: read}
}

// Describe implements prometheus.Collector.
func (g conditionGauge) Describe(descs chan<- *prometheus.Desc) { descs <- g.desc }

// Collect implements prometheus.Collector.
func (g conditionGauge) Collect(metrics chan<- prometheus.Metric) {
	if isTrue, isKnown := g.read(); isKnown {
		metrics <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, oneIf(isTrue))
	}
}

func oneIf(isTrue bool) float64 {
	if isTrue {
		return 1
	}
	return 0
}
