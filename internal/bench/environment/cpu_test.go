package environment

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The time of a process includes that of its children, those that have ended too.
func TestTreeTime(t *testing.T) {
	t.Parallel()
	const enough = 10 * clockTick
	before := tree(t)
	child := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var spent time.Duration // by the child
	testenv.Eventually(t, "the child to use the processor", func() bool {
		stat, err := readStat(child.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		spent = stat.own
		return spent >= enough
	})
	if got := tree(t) - before; got < spent {
		t.Errorf("%v with a child that runs, want %v at least", got, spent)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if got := tree(t) - before; got < spent {
		t.Errorf("%v after the child has ended, want %v at least", got, spent)
	}
}

func tree(t *testing.T) time.Duration {
	t.Helper()
	spent, err := treeTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return spent
}
