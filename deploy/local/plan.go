package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/passbook/passbook/internal/config"
)

// plan is what the user's environment asks for.
type plan struct {
	dir         string // keeps the data, the keys and the programs
	databaseURL string // empty: local starts a Postgres
	redisURL    string // empty: local starts a Redis
	jwtKeys     string // empty: local makes keys
	logFormat   string
	api         address
	apiOps      address
	workerOps   address
}

// address is where a process listens, and the variable that sets it.
type address struct {
	variable string
	value    string
}

func readPlan(getenv func(string) string, dir string) (plan, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return plan{}, fmt.Errorf("find %s: %w", dir, err)
	}
	if getenv("OPS_ADDR") != "" {
		return plan{}, errors.New("OPS_ADDR is one process's, and we start two: set API_OPS_ADDR and WORKER_OPS_ADDR instead")
	}
	at := func(variable, preset string) address {
		return address{variable: variable, value: cmp.Or(getenv(variable), preset)}
	}
	var faults []error
	value := func(variable string) string {
		text, err := config.Value(getenv, variable)
		faults = append(faults, err)
		return text
	}
	p := plan{
		dir:         dir,
		databaseURL: value("DATABASE_URL"),
		redisURL:    value("REDIS_URL"),
		jwtKeys:     value("JWT_KEYS"),
		logFormat:   cmp.Or(getenv("LOG_FORMAT"), "text"),
		api:         at("HTTP_ADDR", "127.0.0.1:8080"),
		apiOps:      at("API_OPS_ADDR", "127.0.0.1:9090"),
		workerOps:   at("WORKER_OPS_ADDR", "127.0.0.1:9091"),
	}
	return p, errors.Join(faults...)
}

// checkPorts reports every port that is not free, before anything starts. It keeps each port
// open while it tries the next, so it also reports a port that is named twice.
func (p plan) checkPorts(ctx context.Context) error {
	var lc net.ListenConfig
	var errs []error
	for _, a := range []address{p.api, p.apiOps, p.workerOps} {
		l, err := lc.Listen(ctx, "tcp", a.value)
		switch {
		case err == nil:
			defer l.Close() //nolint:errcheck // it was only tried
		case errors.Is(err, syscall.EADDRINUSE):
			errs = append(errs, fmt.Errorf("%s is taken; choose another with %s=127.0.0.1:PORT", a.value, a.variable))
		default:
			errs = append(errs, fmt.Errorf("%s: %w", a.variable, err))
		}
	}
	return errors.Join(errs...)
}

// environment returns the environment of a process: the user's, and after it the variables of
// the plan. The last one of a name counts. The plan has read the files that the user named.
func (p plan) environment(ops address) []string {
	return append(os.Environ(),
		"DATABASE_URL="+p.databaseURL,
		"REDIS_URL="+p.redisURL,
		"JWT_KEYS="+p.jwtKeys,
		"DATABASE_URL_FILE=", "REDIS_URL_FILE=", "JWT_KEYS_FILE=",
		"LOG_FORMAT="+p.logFormat,
		"HTTP_ADDR="+p.api.value,
		"OPS_ADDR="+ops.value,
	)
}

// url returns the URL that reaches the address from this machine: an address of all interfaces
// becomes 127.0.0.1.
func (a address) url(path string) string {
	host, port, err := net.SplitHostPort(a.value)
	if err != nil {
		return "http://" + a.value + path
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port) + path
}
