package config_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/config"
)

// Without an endpoint the other variables mean nothing. With one, each fault is named.
func TestTraces(t *testing.T) {
	base := map[string]string{"DATABASE_URL": "postgres://db/x", "REDIS_URL": "redis://r"}
	load := func(more map[string]string) (config.Traces, error) {
		env := maps.Clone(base)
		maps.Copy(env, more)
		cfg, err := config.LoadWorker(func(name string) string { return env[name] })
		return cfg.Traces, err
	}
	const endpoint = "http://user:hunter2@collector:4318/"
	for name, test := range map[string]struct {
		env  map[string]string
		want config.Traces
		err  string
	}{
		"Off":      {map[string]string{"OTEL_TRACES_SAMPLER": "none of these"}, config.Traces{}, ""},
		"Disabled": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "true"}, config.Traces{}, ""},
		"Defaults": {
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
			config.Traces{Endpoint: strings.TrimSuffix(endpoint, "/"), Sampler: "parentbased_traceidratio", Ratio: 0.01},
			"",
		},
		"Set": {
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"},
			config.Traces{Endpoint: "https://c", Sampler: "traceidratio", Ratio: 1},
			"",
		},
		"Endpoint": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318/hunter2"}, config.Traces{}, "OTEL_EXPORTER_OTLP_ENDPOINT"},
		"Protocol": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, config.Traces{}, "OTEL_EXPORTER_OTLP_PROTOCOL"},
		"Sampler":  {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_SAMPLER": "jaeger"}, config.Traces{}, "OTEL_TRACES_SAMPLER"},
		"Ratio":    {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_SAMPLER_ARG": "NaN"}, config.Traces{}, "OTEL_TRACES_SAMPLER_ARG"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := load(test.env)
			if got != test.want || (err == nil) != (test.err == "") {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), test.err+":") || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("%v, want a fault of %s without a secret", err, test.err)
			}
		})
	}
}
