package ops

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// collectEvery is the pause between two collections of a Snapshot. After a long collection the
	// pause is collectShare times as long as it, so that collections take 5 % of the time at most.
	collectEvery = 5 * time.Second
	collectShare = 19
	// collectionLasts is for how many pauses the metrics are shown if no newer ones replace them.
	collectionLasts = 3
)

// Snapshot shows the metrics of a collector that asks a store. The collector asks in the background, so
// a scrape never waits for the store, and scrapes that come often cost the store nothing. While the
// store does not answer, the metrics are absent.
type Snapshot struct {
	inner prometheus.Collector

	mu      sync.Mutex // guards the fields below
	metrics []prometheus.Metric
	until   time.Time // the metrics are too old from then on
}

// NewSnapshot makes a Snapshot of inner, which sends no metric after an error. It works while Run runs.
func NewSnapshot(inner prometheus.Collector) *Snapshot { return &Snapshot{inner: inner} }

// Describe sends nothing: what inner collects is known only once the store has answered.
func (s *Snapshot) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s *Snapshot) Collect(metrics chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().After(s.until) {
		return
	}
	for _, metric := range s.metrics {
		metrics <- metric
	}
}

// Run collects again and again until ctx ends. It then does not wait for a collection that hangs:
// the collector takes no context, and ends once the client of its store is closed.
func (s *Snapshot) Run(ctx context.Context) error {
	for {
		began := time.Now()
		collected := make(chan struct{})
		go func() {
			defer close(collected)
			s.collect()
		}()
		select {
		case <-collected:
		case <-ctx.Done():
			return nil
		}
		pause := max(collectEvery, collectShare*time.Since(began))
		s.keep(collectionLasts * pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// collect replaces the metrics with those that inner has now.
func (s *Snapshot) collect() {
	collected := make(chan prometheus.Metric)
	go func() {
		defer close(collected)
		s.inner.Collect(collected)
	}()
	var metrics []prometheus.Metric
	for metric := range collected {
		metrics = append(metrics, metric)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics = metrics
}

func (s *Snapshot) keep(lasts time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = time.Now().Add(lasts)
}
