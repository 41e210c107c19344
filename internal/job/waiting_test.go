package job

import (
	"errors"
	"testing"

	"github.com/google/uuid"
)

// The batches of one user take some of the places, and leave the others to other users. A batch that a
// committer has taken leaves its place, also where its client has given it up.
func TestAcceptBatch_Places(t *testing.T) {
	t.Parallel()
	a := NewAcceptor(nil, nil, 1)
	wait := func(user uuid.UUID) bool {
		return a.enqueue(&batchRequest{ctx: t.Context(), requests: []Request{{UserID: user}}})
	}
	greedy := uuid.New()
	for n := range maxWaitingBatchesPerUser {
		if !wait(greedy) {
			t.Fatalf("%d batches of a user wait, and no more", n)
		}
	}
	if _, err := a.AcceptBatch(t.Context(), []Request{{UserID: greedy}}); !errors.Is(err, ErrOverloaded) {
		t.Errorf("one more: %v, want %v", err, ErrOverloaded)
	}
	for n := maxWaitingBatchesPerUser; n < maxWaitingBatches; n++ {
		if !wait(uuid.New()) {
			t.Fatalf("%d batches wait, and no other user's", n)
		}
	}
	late := uuid.New()
	if wait(late) {
		t.Error("more than all places are taken")
	}
	a.collect(t.Context())
	if !wait(greedy) {
		t.Error("a batch that was taken keeps its place")
	}
	for len(a.batches) > 0 {
		a.collect(t.Context())
	}
	if len(a.places.taken) != 0 {
		t.Errorf("places are taken by nothing: %v", a.places.taken)
	}
}
