package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Traces says which requests are traced, and where the traces are sent.
type Traces struct {
	Endpoint string // of an OTLP collector, over HTTP; empty for no traces
	Sampler  string
	Ratio    float64 // of the requests, for a sampler that takes one
}

// The samplers of OTEL_TRACES_SAMPLER.
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
var samplers = []string{
	"always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
}

var (
	otlpEndpoint = variable{
		name:    "OTEL_EXPORTER_OTLP_ENDPOINT",
		want:    "the http:// or https:// URL of a collector that takes OTLP over HTTP",
		example: "http://localhost:4318",
	}
	otlpProtocol = variable{
		name:     "OTEL_EXPORTER_OTLP_PROTOCOL",
		standard: "http/protobuf",
		want:     "http/protobuf, the only one that this version sends",
		example:  "http/protobuf",
	}
	tracesSampler = variable{
		name:     "OTEL_TRACES_SAMPLER",
		standard: "parentbased_traceidratio",
		want:     strings.Join(samplers, ", "),
		example:  "parentbased_traceidratio",
	}
	tracesRatio = variable{
		name:     "OTEL_TRACES_SAMPLER_ARG",
		standard: "0.01",
		want:     "a number from 0 to 1",
		example:  "0.01",
	}
)

// readTraces reads only the endpoint if it is absent or if OTEL_SDK_DISABLED is true.
func readTraces(env *environment) Traces {
	if env.getenv(otlpEndpoint.name) == "" || strings.EqualFold(env.getenv("OTEL_SDK_DISABLED"), "true") {
		return Traces{}
	}
	read(env, otlpProtocol, parseProtocol)
	return Traces{
		Endpoint: read(env, otlpEndpoint, parseEndpoint),
		Sampler:  read(env, tracesSampler, parseSampler),
		Ratio:    read(env, tracesRatio, parseRatio),
	}
}

// parseEndpoint shows no part of the URL in its errors, because it may hold a password.
func parseEndpoint(text string) (string, error) {
	endpoint, err := url.Parse(text)
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "http" && endpoint.Scheme != "https" {
		return "", errors.New("is no such URL")
	}
	return strings.TrimSuffix(text, "/"), nil
}

func parseProtocol(text string) (string, error) {
	if text != otlpProtocol.standard {
		return "", fmt.Errorf("%q is another protocol", text)
	}
	return text, nil
}

func parseSampler(text string) (string, error) {
	if !slices.Contains(samplers, text) {
		return "", fmt.Errorf("%q is no sampler", text)
	}
	return text, nil
}

func parseRatio(text string) (float64, error) {
	ratio, err := strconv.ParseFloat(text, 64)
	if err != nil || !(ratio >= 0 && ratio <= 1) { // NaN too
		return 0, fmt.Errorf("%q is out of range or no number", text)
	}
	return ratio, nil
}
