package config //nolint:testpackage // the limit of open files is the process's

import "testing"

func TestConnectionsWithin(t *testing.T) {
	for files, want := range map[uint64]int{
		0: 1, 1: 1, 2: 1, 64: 32, 256: 128, 512: 256, 1024: 768, 4096: 3072, 1 << 20: 3 << 18, ^uint64(0): 3 << 22,
	} {
		if got := connectionsWithin(files); got != want {
			t.Errorf("of %d files %d connections, want %d", files, got, want)
		}
	}
}
