package ops

import (
	"runtime/debug"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with the metrics of the Go runtime, the process and the build.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(),
	)
	return registry
}

// buildInfo is always 1; its labels describe the build. A label is empty where it is unknown.
func buildInfo() prometheus.Collector {
	labels := prometheus.Labels{"version": "", "revision": "", "go_version": ""}
	if info, ok := debug.ReadBuildInfo(); ok {
		labels["version"] = info.Main.Version
		labels["go_version"] = info.GoVersion
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				labels["revision"] = setting.Value
			}
		}
	}
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "passbook_build_info", Help: "Always 1; the labels say which build runs.", ConstLabels: labels,
	})
	gauge.Set(1)
	return gauge
}

// RegisterPool adds the metrics of a pool of connections to Postgres. The label pool is its name.
func RegisterPool(registry prometheus.Registerer, name string, pool *pgxpool.Pool) {
	prometheus.WrapRegistererWith(prometheus.Labels{"pool": name}, registry).MustRegister(poolCollector{pool})
}

type poolCollector struct {
	pool *pgxpool.Pool
}

// Describe implements prometheus.Collector.
func (c poolCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, figure := range poolFigures {
		descs <- figure.desc
	}
}

// Collect implements prometheus.Collector. All figures are of one moment.
func (c poolCollector) Collect(metrics chan<- prometheus.Metric) {
	stat := c.pool.Stat()
	for _, figure := range poolFigures {
		metrics <- prometheus.MustNewConstMetric(figure.desc, figure.kind, figure.value(stat))
	}
}

type poolFigure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*pgxpool.Stat) float64
}

var poolFigures = []poolFigure{
	poolGauge("max_connections", "Connections that the pool may open.",
		func(s *pgxpool.Stat) float64 { return float64(s.MaxConns()) }),
	poolGauge("open_connections", "Connections that are open or being opened.",
		func(s *pgxpool.Stat) float64 { return float64(s.TotalConns()) }),
	poolGauge("acquired_connections", "Connections in use.",
		func(s *pgxpool.Stat) float64 { return float64(s.AcquiredConns()) }),
	poolGauge("idle_connections", "Open connections that wait for use.",
		func(s *pgxpool.Stat) float64 { return float64(s.IdleConns()) }),
	poolCounter("new_connections_total", "Connections opened.",
		func(s *pgxpool.Stat) float64 { return float64(s.NewConnsCount()) }),
	poolCounter("acquires_total", "Connections taken from the pool.",
		func(s *pgxpool.Stat) float64 { return float64(s.AcquireCount()) }),
	poolCounter("acquire_duration_seconds_total", "Time that successful acquires took.",
		func(s *pgxpool.Stat) float64 { return s.AcquireDuration().Seconds() }),
	poolCounter("empty_acquires_total", "Acquires that waited because no connection was idle.",
		func(s *pgxpool.Stat) float64 { return float64(s.EmptyAcquireCount()) }),
	poolCounter("empty_acquire_wait_seconds_total", "Time that acquires waited because no connection was idle.",
		func(s *pgxpool.Stat) float64 { return s.EmptyAcquireWaitTime().Seconds() }),
	poolCounter("canceled_acquires_total", "Acquires given up before a connection was there.",
		func(s *pgxpool.Stat) float64 { return float64(s.CanceledAcquireCount()) }),
}

func poolGauge(name, help string, value func(*pgxpool.Stat) float64) poolFigure {
	return poolFigure{poolDesc(name, help), prometheus.GaugeValue, value}
}

func poolCounter(name, help string, value func(*pgxpool.Stat) float64) poolFigure {
	return poolFigure{poolDesc(name, help), prometheus.CounterValue, value}
}

func poolDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("passbook_postgres_pool_"+name, help, nil, nil)
}
