package ops_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbook/passbook/internal/ops"
)

// Checks that hang are given up together, on synctest's clock: those of what the
// process can do without sooner.
func TestReadyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		serve := func(context.Context) error { return nil }
		for _, test := range []struct {
			required, optional      func(context.Context) error
			status, postgres, redis string
			took                    time.Duration
		}{
			{hang, hang, "unavailable", "down", "down", 2 * time.Second},
			{serve, hang, "ok", "up", "down", 500 * time.Millisecond},
			{serve, serve, "ok", "up", "up", 0},
		} {
			begun := time.Now()
			got := ops.Ready(t.Context(), slog.New(slog.DiscardHandler), []ops.Check{
				{Name: "postgres", Required: true, Probe: test.required},
				{Name: "redis", Probe: test.optional},
			})
			if took := time.Since(begun); took != test.took {
				t.Errorf("took %v, want %v", took, test.took)
			}
			if got.Status != test.status || got.Dependencies[0].Status != test.postgres || got.Dependencies[1].Status != test.redis {
				t.Errorf("got %+v, want %+v", got, test)
			}
		}
	})
}

// The caller's own end is passed on.
func TestReadyEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	probe := func(ctx context.Context) error { return ctx.Err() }
	got := ops.Ready(ctx, slog.New(slog.DiscardHandler), []ops.Check{{Name: "postgres", Required: true, Probe: probe}})
	if got.Status != "unavailable" {
		t.Errorf("got %+v", got)
	}
}
