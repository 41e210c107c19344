package job

import (
	"errors"
	"testing"

	"github.com/google/uuid"
)

// Only some of the waiting batches may be one user's; other users' batches can still wait. A batch that
// a committer has taken does not count as waiting, even if its client no longer waits for it.
func TestAcceptBatch_Places(t *testing.T) {
	t.Parallel()
	a := NewAcceptor(nil, nil, 1)
	wait := func(user uuid.UUID) bool {
		return a.enqueue(&batchRequest{ctx: t.Context(), requests: []Request{{UserID: user}}})
	}
	greedy := uuid.New()
	for n := range maxWaitingBatchesPerUser {
		if !wait(greedy) {
			t.Fatalf("only %d batches of a user may wait", n)
		}
	}
	if _, err := a.AcceptBatch(t.Context(), []Request{{UserID: greedy}}); !errors.Is(err, ErrOverloaded) {
		t.Errorf("one more: %v, want %v", err, ErrOverloaded)
	}
	for n := maxWaitingBatchesPerUser; n < maxWaitingBatches; n++ {
		if !wait(uuid.New()) {
			t.Fatalf("with %d waiting batches another user is refused", n)
		}
	}
	late := uuid.New()
	if wait(late) {
		t.Error("more batches wait than may")
	}
	a.collect(t.Context())
	if !wait(greedy) {
		t.Error("a batch that was taken still counts as waiting")
	}
	for len(a.batches) > 0 {
		a.collect(t.Context())
	}
	if len(a.userBatches.waiting) != 0 {
		t.Errorf("batches are counted that do not wait: %v", a.userBatches.waiting)
	}
}
