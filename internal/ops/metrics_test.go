package ops_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestRegisterPool(t *testing.T) {
	pool := testenv.Pool(t)
	registry := prometheus.NewPedanticRegistry()
	ops.RegisterPool(registry, "test", pool)
	ops.RegisterPool(registry, "untouched", testenv.Pool(t))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	figures := gather(t, registry)
	for name, want := range map[string]float64{
		"max_connections":      float64(pool.Config().MaxConns),
		"open_connections":     1,
		"acquired_connections": 1,
		"idle_connections":     0,
		"acquires_total":       1,
	} {
		if got, there := figures["passbook_postgres_pool_"+name]; !there || got != want {
			t.Errorf("%s is %v (there: %v), want %v", name, got, there, want)
		}
	}
	for name := range figures {
		if !strings.HasPrefix(name, "passbook_postgres_pool_") {
			t.Errorf("%s lacks the prefix", name)
		}
	}
}

func TestNewRegistry(t *testing.T) {
	if got := gather(t, ops.NewRegistry())["passbook_build_info"]; got != 1 {
		t.Errorf("passbook_build_info is %v", got)
	}
}

// gather answers gauges and counters by name, having linted all of ours.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var ours []*dto.MetricFamily
	figures := map[string]float64{}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "passbook_") {
			continue
		}
		ours = append(ours, family)
		metric := family.GetMetric()[0]
		figures[family.GetName()] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
	}
	problems, err := promlint.NewWithMetricFamilies(ours).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	return figures
}
