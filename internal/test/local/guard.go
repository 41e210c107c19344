package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

const (
	killWait    = 15 * time.Second // for a server that was told to drop everything
	reclaimWait = 30 * time.Second
)

// guardScript stands between us and the server, because no handler of ours
// runs when we are killed by SIGKILL. It holds the reading end of a pipe whose
// only writing end is ours. A line on it is a signal for the server; its end,
// which the kernel brings about whatever we die of, stops the server.
//
// In: $1 the signal that stops the server, $2 a folder to delete when the
// owner is gone (or nothing), the rest the server's command. Out: the server's
// own exit status.
//
// The server doesn't hold the pipe, and the listener is told apart by how it
// ended: by itself (0) when the owner is gone, by our kill when the server went
// first.
const guardScript = `
stop=$1 remove=$2
shift 2
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
(
	while read -r signal; do kill -"$signal" "$server"; done
	kill -"$stop" "$server"
) <&3 &
listener=$!
exec 3<&-
wait "$server"
status=$?
exec 2>/dev/null # where the shell would say that the listener was terminated
kill "$listener"
if wait "$listener" && [ -n "$remove" ]; then rm -rf "$remove"; fi
exit "$status"
`

// process is a command under its guard.
type process struct {
	guard  *exec.Cmd
	orders io.Writer
	server int // the server's own process, known once it is ready
	done   chan struct{}
	err    error // how it ended, nil for status 0; to be read only after done
}

// guarded is what to start under a guard.
type guarded struct {
	command []string
	dir     string // where it works; empty is where we do
	env     []string
	owner   *owner
	output  *os.File
	stop    syscall.Signal // when we are gone
	remove  string         // a folder to delete when we are gone; may be empty
}

// start starts a command under its guard. It has a process group of its own, so
// Ctrl-C in the terminal reaches us and not it: the order of the stop is ours.
// The goroutine ends with the command, and end waits for that.
func (g guarded) start(ctx context.Context) (*process, error) {
	args := append([]string{"-c", guardScript, "guard", strconv.Itoa(int(g.stop)), g.remove}, g.command...)
	guard := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...) //nolint:gosec // our script; the commands are ours, or looked up by find.go
	guard.Dir, guard.Env = g.dir, g.env
	guard.Stdout, guard.Stderr = g.output, g.output
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: g.owner.credential()}
	orders, err := guard.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("guard %s: %w", g.command[0], err)
	}
	if err := guard.Start(); err != nil {
		return nil, fmt.Errorf("guard %s: %w", g.command[0], err)
	}
	p := &process{guard: guard, orders: orders, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = guard.Wait()
	}()
	return p, nil
}

// end asks the server to go and waits for it. When ctx ends first it is made
// to go, and that is an error.
func (p *process) end(ctx context.Context, ask, force syscall.Signal) error {
	p.order(ask)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	p.order(force)
	timer := time.NewTimer(killWait)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		// The whole group: the guard and the server.
		_ = syscall.Kill(-p.guard.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
	return fmt.Errorf("killed, because it did not stop in time: %w", context.Cause(ctx))
}

// order has the guard signal the server. An order to a guard that is gone is
// no fault: so is the server.
func (p *process) order(s syscall.Signal) {
	_, _ = fmt.Fprintf(p.orders, "%d\n", int(s))
}

// ended says how a command went that was not asked to go.
func (p *process) ended() error {
	if p.err != nil {
		return fmt.Errorf("it ended by itself: %w", p.err)
	}
	return errors.New("it ended by itself, without a fault")
}
