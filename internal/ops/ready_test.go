package ops_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ops"
)

func serves(context.Context) error { return nil }

// hangs returns when its context ends.
func hangs(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Probes that hang are given up together, on synctest's clock. An answer of /readyz waits for none.
func TestProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := ops.NewChecks(slog.New(slog.DiscardHandler), check("postgres", true, hangs), check("redis", false, hangs), check("sweep", true, serves))
		if got := checks.Readiness(); got.Status != "unavailable" {
			t.Errorf("before the first probe: %+v", got)
		}
		begun := time.Now()
		checks.Probe(t.Context())
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("took %v, want 2s", took)
		}
		begun = time.Now()
		got := checks.Readiness()
		if took := time.Since(begun); took != 0 || got.Status != "unavailable" || got.Dependencies[0].Status != "down" || got.Dependencies[2].Status != "up" {
			t.Errorf("%+v after %v", got, took)
		}
	})
}

// Checks show within seconds that a dependency goes down or is up again. The log has a line when it goes
// down, one a minute while it is down, and one when it is up again.
func TestChecksFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var isFull atomic.Bool
		var log strings.Builder
		checks := ops.NewChecks(slog.New(slog.NewTextHandler(&log, nil)), ops.Check{
			Name: "postgres", Required: true, Store: true, Probe: func(context.Context) error {
				if isFull.Load() {
					return errors.New("disk full")
				}
				return nil
			},
		})
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(checks)
		want := func(status string, up float64) {
			t.Helper()
			if got := checks.Readiness().Status; got != status {
				t.Errorf("%v: %s, want %s", time.Now(), got, status)
			}
			figures := gather(t, registry)
			for _, name := range []string{"passbook_store_up", "passbook_check_up"} {
				if got, shown := figures[name]; !shown || got != up {
					t.Errorf("%s is %v, shown: %t; want %v", name, got, shown, up)
				}
			}
		}
		if figures := gather(t, registry); len(figures) > 0 {
			t.Errorf("before the first probe: %v", figures)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- checks.Run(ctx) }()
		const soon = 4 * time.Second
		await := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		await(soon)
		want("ok", 1)
		isFull.Store(true)
		await(soon)
		want("unavailable", 0)
		await(90 * time.Second)
		want("unavailable", 0)
		isFull.Store(false)
		await(soon)
		want("ok", 1)
		if down, up := strings.Count(log.String(), "disk full"), strings.Count(log.String(), "up again"); down != 2 || up != 1 {
			t.Errorf("%d lines that it is down, and %d that it is up again; want 2 and 1:\n%s", down, up, log.String())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		await(time.Minute) // without probes nothing is known
		if got := checks.Readiness().Status; got != "unavailable" {
			t.Errorf("without probes: %s", got)
		}
		if figures := gather(t, registry); len(figures) > 0 {
			t.Errorf("without probes: %v", figures)
		}
	})
}

// While calls to a store fail, the lines about that outage are the only ones. A fault that only the probe
// finds has lines of its own.
func TestChecksLeaveAnOutageToItsLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log output
		logger := slog.New(slog.NewTextHandler(&log, nil))
		outage := ops.NewOutage(logger, "postgres", "nothing")
		fault := errors.New("connection refused")
		checks := ops.NewChecks(logger, ops.Check{Name: "postgres", Outage: outage, Probe: func(context.Context) error { return fault }})
		probe := func(times int, call error) {
			for range times {
				outage.Note("postgres:5432", call)
				checks.Probe(t.Context())
				<-time.After(time.Second)
				synctest.Wait()
			}
		}
		want := func(away, down, up int) {
			t.Helper()
			if log.count("dependency away") != away || log.count("dependency down") != down || log.count("up again") != up {
				t.Errorf("want %d, %d and %d lines:\n%s", away, down, up, log.String())
			}
		}
		probe(5, fault)
		want(1, 0, 0)
		fault = errors.New("schema is too old")
		probe(5, nil)
		want(1, 1, 0)
		fault = nil
		probe(5, nil)
		want(1, 1, 1)
	})
}

// A probe that the end of the process cuts off says nothing about its dependency.
func TestProbeEndsWithItsProcess(t *testing.T) {
	var log strings.Builder
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	ops.NewChecks(slog.New(slog.NewTextHandler(&log, nil)), check("postgres", true, hangs)).Probe(ctx)
	if log.String() != "" {
		t.Errorf("the log: %s", log.String())
	}
}
