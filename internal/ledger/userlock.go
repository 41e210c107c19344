package ledger

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/passbook/passbook/internal/postgres"
)

// userLocks has a lock for each user in this process. Openings get it in the order in which they ask,
// and wait without a connection. Without it each opening would try for Postgres's lock with a
// connection, and LockRetries would refuse most. The API bounds a user's waiting openings. The zero
// value is ready to use.
type userLocks struct {
	mu sync.Mutex // guards of
	of map[uuid.UUID]*userLock
}

type userLock struct {
	held    *semaphore.Weighted // of 1
	callers int                 // that hold the lock or wait for it
}

// lock waits for the user's lock. The caller must call unlock. It returns postgres.ErrLocked if ctx
// ends first.
func (l *userLocks) lock(ctx context.Context, user uuid.UUID) (unlock func(), err error) {
	own := l.enter(user)
	if err := own.held.Acquire(ctx, 1); err != nil {
		l.leave(user)
		return nil, fmt.Errorf("%w: %w", postgres.ErrLocked, err)
	}
	return func() {
		own.held.Release(1)
		l.leave(user)
	}, nil
}

func (l *userLocks) enter(user uuid.UUID) *userLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[uuid.UUID]*userLock{}
	}
	if l.of[user] == nil {
		l.of[user] = &userLock{held: semaphore.NewWeighted(1)}
	}
	l.of[user].callers++
	return l.of[user]
}

func (l *userLocks) leave(user uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[user].callers--; l.of[user].callers == 0 {
		delete(l.of, user)
	}
}
