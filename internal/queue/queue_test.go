package queue

import (
	"testing"
)

// The partition of an account never changes: another hash would spread an account's jobs
// over two queues during an upgrade.
func TestPartitionIsStable(t *testing.T) {
	t.Parallel()
	for accountID, want := range map[int64]int{1: 2, 2: 15, 3: 12, 1000: 6, 1 << 40: 12} {
		if got := Partition(accountID, 16); got != want {
			t.Errorf("account %d is in partition %d, want %d", accountID, got, want)
		}
	}
}

func TestPartitionsAreEven(t *testing.T) {
	t.Parallel()
	const partitions, accounts = 16, 16000
	var count [partitions]int
	for id := range int64(accounts) {
		count[Partition(id, partitions)]++
	}
	for partition, n := range count {
		if n < accounts/partitions*8/10 || n > accounts/partitions*12/10 {
			t.Errorf("partition %d has %d of %d accounts", partition, n, accounts)
		}
	}
}
