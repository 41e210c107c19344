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
	failed := errors.New("failed")
	for name, test := range map[string]struct {
		isEnded   bool
		err, want error
	}{
		"Runs":         {false, failed, failed},
		"Ended":        {true, failed, boot.ErrStopped},
		"EndedAllWell": {true, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.isEnded {
				cancel()
			}
			if err := boot.Stopped(ctx, test.err); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}
