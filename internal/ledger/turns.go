package ledger

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/passbook/passbook/internal/postgres"
)

// turns let the openings of one user follow one another in this process. Else each of them would try
// for the lock with a connection, and LockRetries would refuse all but a few. The API bounds how many
// of one user wait. The zero value is ready to use.
type turns struct {
	mu sync.Mutex // guards of
	of map[uuid.UUID]*turn
}

// turn is one user's.
type turn struct {
	free *semaphore.Weighted // the opening that holds it has the turn
	many int                 // openings that hold it or wait for it
}

// take waits for the user's turn, in the order of the calls. The caller must call end. It returns
// postgres.ErrLocked where ctx ends first.
func (t *turns) take(ctx context.Context, user uuid.UUID) (end func(), err error) {
	own := t.enter(user)
	if err := own.free.Acquire(ctx, 1); err != nil {
		t.leave(user)
		return nil, fmt.Errorf("%w: %w", postgres.ErrLocked, err)
	}
	return func() {
		own.free.Release(1)
		t.leave(user)
	}, nil
}

func (t *turns) enter(user uuid.UUID) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[uuid.UUID]*turn{}
	}
	if t.of[user] == nil {
		t.of[user] = &turn{free: semaphore.NewWeighted(1)}
	}
	t.of[user].many++
	return t.of[user]
}

func (t *turns) leave(user uuid.UUID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[user].many--; t.of[user].many == 0 {
		delete(t.of, user)
	}
}
