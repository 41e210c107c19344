package testenv

import (
	"slices"
	"sync"
	"syscall"
	"testing"
)

// Freeze stops processes, in this order, until thaw or the end of the test. What
// they serve loses everything meanwhile, as a broken network does.
func Freeze(t testing.TB, pids ...int) (thaw func()) {
	t.Helper()
	thaw = sync.OnceFunc(func() {
		for _, pid := range slices.Backward(pids) {
			_ = syscall.Kill(pid, syscall.SIGCONT) // an error says that it is gone
		}
	})
	t.Cleanup(thaw)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	return thaw
}
