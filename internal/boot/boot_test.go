package boot_test

import (
	"context"
	"errors"
	"testing"

	"github.com/passbook/passbook/internal/boot"
)

// An error of a start counts as a stop only once the start was told to end.
func TestStopped(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	failed := errors.New("failed")
	for name, test := range map[string]struct {
		ctx       context.Context //nolint:containedctx // it is what the test varies
		err, want error
	}{
		"Runs":         {t.Context(), failed, failed},
		"Ended":        {ended, failed, boot.ErrStopped},
		"EndedAllWell": {ended, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := boot.Stopped(test.ctx, test.err); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}
