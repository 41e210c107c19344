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

// Checks that hang are given up together after two seconds, on synctest's clock.
func TestReadyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		begun := time.Now()
		got := ops.Ready(t.Context(), slog.New(slog.DiscardHandler), []ops.Check{
			{Name: "postgres", Required: true, Probe: hang},
			{Name: "redis", Probe: hang},
		})
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
		if got.Status != "unavailable" || got.Dependencies[0].Status != "down" || got.Dependencies[1].Status != "down" {
			t.Errorf("got %+v", got)
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
