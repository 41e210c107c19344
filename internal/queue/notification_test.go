package queue

import (
	"slices"
	"testing"

	"github.com/google/uuid"
)

// Notifications of unknown accounts are not merged.
func TestMergeKeepsUnknownAccounts(t *testing.T) {
	t.Parallel()
	all := []Notification{{JobID: uuid.New(), Jobs: 1}, {JobID: uuid.New(), Jobs: 1}}
	if got := Merge(all); !slices.Equal(got, all) {
		t.Errorf("merged %v to %v", all, got)
	}
}
