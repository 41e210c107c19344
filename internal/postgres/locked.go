package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// lockRetryFor is how long a request tries to lock a row: long enough for several commits
	// that wait for a standby, and shorter than a client waits.
	lockRetryFor = 2 * time.Second
	// The pauses between two tries double up to the longest. They are random, so that the
	// requests for one row don't try at the same time.
	firstLockPause   = 4 * time.Millisecond
	longestLockPause = 64 * time.Millisecond
	// maxLockRetries is how many requests of a process may pause for one row at once.
	maxLockRetries = 16
)

// ErrLocked is returned for a row that other transactions lock. Nothing happened: the HTTP
// edge answers 503 unavailable with Retry-After.
var ErrLocked = errors.New("the row is locked by other transactions")

// AsLocked returns ErrLocked where err says that Postgres did not grant a lock, by NOWAIT or in the
// time of lock_timeout, and err otherwise.
func AsLocked(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "55P03" {
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	return err
}

// LockRetries lets requests wait for a row's lock without holding a connection. A statement
// that waits inside Postgres holds its connection meanwhile, so the requests of one client for
// one row would take the whole pool. The zero value is ready to use.
type LockRetries struct {
	For time.Duration // lockRetryFor where 0

	mu      sync.Mutex
	pausing map[string]int // by row; guarded by mu
}

// Do runs try, and again after a pause while try returns ErrLocked: for up to lockRetryFor,
// and for up to maxLockRetries callers of a row at once. Then it returns ErrLocked.
//
// try must lock with SKIP LOCKED or NOWAIT, so that it holds a connection only briefly. It may run
// more than once, so it must keep nothing from a run that found the row locked.
func (r *LockRetries) Do(ctx context.Context, row string, try func() error) error {
	err := try()
	if !errors.Is(err, ErrLocked) || !r.begin(row) {
		return err
	}
	defer r.end(row)
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(r.For, lockRetryFor))
	defer cancel()
	for pause := firstLockPause; errors.Is(err, ErrLocked); pause = min(2*pause, longestLockPause) {
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // spreads tries, keeps no secret
		}
		err = try()
	}
	return err
}

// Pausing returns how many callers wait for a row.
func (r *LockRetries) Pausing(row string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pausing[row]
}

func (r *LockRetries) begin(row string) (ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pausing[row] == maxLockRetries {
		return false
	}
	if r.pausing == nil {
		r.pausing = map[string]int{}
	}
	r.pausing[row]++
	return true
}

func (r *LockRetries) end(row string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pausing[row]--; r.pausing[row] == 0 {
		delete(r.pausing, row)
	}
}
