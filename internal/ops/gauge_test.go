package ops_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ops"
)

// A gauge is absent before it is set, and when it was set too long ago.
func TestGauge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		gauge := ops.NewGauge("passbook_test_jobs", "Jobs.", time.Minute)
		registry.MustRegister(gauge)
		want := func(want map[string]float64) {
			t.Helper()
			got := gather(t, registry)
			if len(got) != len(want) || got["passbook_test_jobs"] != want["passbook_test_jobs"] {
				t.Errorf("%v, want %v", got, want)
			}
		}
		want(nil)
		gauge.Set(3)
		want(map[string]float64{"passbook_test_jobs": 3})
		<-time.After(59 * time.Second)
		want(map[string]float64{"passbook_test_jobs": 3})
		<-time.After(time.Second)
		want(nil)
		gauge.Set(0)
		want(map[string]float64{"passbook_test_jobs": 0})
	})
}

func TestConditionGauge(t *testing.T) {
	isTrue, isKnown := false, false
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(ops.ConditionGauge("passbook_test", "A test.", func() (bool, bool) { return isTrue, isKnown }))
	if got := gather(t, registry); len(got) != 0 {
		t.Errorf("unknown: %v", got)
	}
	for _, isTrue = range []bool{false, true} {
		isKnown = true
		if got, shown := gather(t, registry)["passbook_test"]; !shown || (got == 1) != isTrue {
			t.Errorf("%t: %v, shown: %t", isTrue, got, shown)
		}
	}
}

// store is a collector whose store hangs, or has an error, as the test says.
type store struct {
	asked  atomic.Int64
	hang   atomic.Pointer[chan struct{}] // closed: it answers
	broken atomic.Bool
}

func (s *store) Describe(chan<- *prometheus.Desc) {}

func (s *store) Collect(metrics chan<- prometheus.Metric) {
	s.asked.Add(1)
	<-*s.hang.Load()
	if !s.broken.Load() {
		metrics <- prometheus.MustNewConstMetric(prometheus.NewDesc("passbook_test_tasks", "Tasks.", nil, nil), prometheus.GaugeValue, 7)
	}
}

// A scrape shows the metrics of the last collection, and does not wait for one. Scrapes cause no
// collections. Metrics that the store no longer returns are absent.
func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, answers, hangs := new(store), make(chan struct{}), make(chan struct{})
		inner.hang.Store(&answers)
		snapshot := ops.NewSnapshot(inner)
		registry := prometheus.NewRegistry()
		registry.MustRegister(snapshot)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- snapshot.Run(ctx) }()
		want := func(tasks float64, isShown bool) {
			t.Helper()
			synctest.Wait()
			begun := time.Now()
			got, shown := gather(t, registry)["passbook_test_tasks"]
			if took := time.Since(begun); took != 0 || shown != isShown || got != tasks {
				t.Errorf("%v, shown: %t, after %v; want %v, %t", got, shown, took, tasks, isShown)
			}
		}
		want(0, false) // the store hangs
		close(answers)
		want(7, true)
		for range 60 {
			<-time.After(time.Second)
			want(7, true)
		}
		if asked := inner.asked.Load(); asked > 13 {
			t.Errorf("the store was asked %d times in a minute", asked)
		}
		inner.broken.Store(true)
		<-time.After(6 * time.Second)
		want(0, false)
		inner.hang.Store(&hangs) // a look that hangs does not keep Run from ending
		<-time.After(6 * time.Second)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		close(hangs)
	})
}
