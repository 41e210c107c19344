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

// armed is what Variable says, read once.
var armed = arm(os.Getenv(Variable)) //nolint:forbidigo // no setting of the product: only builds for tests read it

type trap struct {
	point  Point
	pass   int64 // the passing that kills
	passed atomic.Int64
}

// arm panics where a test names a point that is not there: it would wait for a
// crash that can't come.
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

// Hit kills the process at the armed passing of the armed point, as kill -9
// does: nothing is finished, flushed or given back.
func Hit(point Point) {
	if point != armed.point || armed.passed.Add(1) != armed.pass {
		return
	}
	fmt.Fprintln(os.Stderr, point.Epitaph())
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // its own: never refused
	select {}                                      // for as long as the signal takes
}
