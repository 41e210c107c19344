//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// armed is the point that Variable names, read once at start.
var armed = arm(os.Getenv(Variable)) //nolint:forbidigo // no setting of the product: only builds for tests read it

type trap struct {
	point  Point
	pass   int64 // how many hits it takes to kill
	passed atomic.Int64
}

// arm panics if a test names an unknown point: the test would wait for a crash
// that never comes.
func arm(at string) *trap {
	name, nth, counted := strings.Cut(at, "#")
	t := &trap{point: Point(name), pass: 1}
	if counted {
		n, err := strconv.ParseInt(nth, 10, 64)
		if err != nil {
			panic(fmt.Sprintf("%s=%s: %v", Variable, at, err))
		}
		t.pass = n
	}
	if at != "" && !slices.Contains(Points, t.point) {
		panic(fmt.Sprintf("%s=%s: no such point", Variable, at))
	}
	return t
}

// Hit kills the process when it reaches the armed point the armed number of times. As
// with kill -9, the process finishes, flushes and returns nothing.
func Hit(point Point) {
	if point != armed.point || armed.passed.Add(1) != armed.pass {
		return
	}
	fmt.Fprintln(os.Stderr, point.KillMessage())
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // of its own process: never refused
	select {}                                      // until the signal arrives
}
