package postgres_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// Do gives up a row that stays locked after a bound, and at once where many callers wait for it
// already. Callers for other rows, and those that wait already, go on.
func TestLockRetries(t *testing.T) {
	t.Parallel()
	const most = 16
	locks := postgres.LockRetries{For: time.Hour}
	var free atomic.Bool
	try := func() error {
		if free.Load() {
			return nil
		}
		return postgres.ErrLocked
	}
	var group sync.WaitGroup
	for range most {
		group.Go(func() {
			if err := locks.Do(t.Context(), "row", try); err != nil {
				t.Error(err)
			}
		})
	}
	testenv.Eventually(t, "as many as may to pause", func() bool { return locks.Pausing("row") == most })
	if err := locks.Do(t.Context(), "row", try); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("one more: got %v, want ErrLocked", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := locks.Do(ended, "another", try); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("a client that went away: got %v, want ErrLocked", err)
	}
	free.Store(true)
	group.Wait()
	if n := locks.Pausing("row") + locks.Pausing("another"); n != 0 {
		t.Errorf("%d still pause", n)
	}

	short := postgres.LockRetries{For: time.Millisecond}
	if err := short.Do(t.Context(), "row", func() error { return postgres.ErrLocked }); !errors.Is(err, postgres.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}
