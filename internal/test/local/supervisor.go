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

// supervisorScript ends the server when this process dies, because a process killed by
// SIGKILL runs no handler. The script reads a pipe of which this process has the only
// writing end. Each line is a signal for the server. At the end of the pipe, which the
// kernel closes however the process dies, the script stops the server.
//
// In: $1 the signal that stops the server, $2 a folder to delete when the owner is
// gone (or nothing), the rest the server's command. Out: the server's exit status.
//
// The server doesn't hold the pipe. The listener's status says which process ended
// first: 0 when the owner has died, a signal's when the server has ended.
const supervisorScript = `
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

// process is a command under its supervisor.
type process struct {
	supervisor *exec.Cmd
	orders     io.Writer
	server     int // the server's own process, known once it is ready
	done       chan struct{}
	err        error // how it ended, nil for status 0; to be read only after done
}

// supervised is what to start under a supervisor.
type supervised struct {
	command []string
	dir     string // its working directory; empty is this process's
	env     []string
	owner   *owner
	host    *Host
	output  *os.File
	stop    syscall.Signal // sent when this process has died
	remove  string         // a folder to delete when this process has died; may be empty
}

// start starts a command under its supervisor. The command has a process group of its
// own, so Ctrl-C in the terminal reaches this process alone, which stops its servers in
// order. The goroutine ends with the command, and end waits for that.
func (s supervised) start(ctx context.Context) (*process, error) {
	args := append([]string{"-c", supervisorScript, "supervisor", strconv.Itoa(int(s.stop)), s.remove}, s.command...)
	supervisor := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...) //nolint:gosec // a constant script; the commands are constants, or looked up by find.go
	supervisor.Dir, supervisor.Env = s.dir, s.env
	supervisor.Stdout, supervisor.Stderr = s.output, s.output
	supervisor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.owner.credential()}
	orders, err := supervisor.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("supervise %s: %w", s.command[0], err)
	}
	if err := s.host.Start(supervisor); err != nil {
		return nil, fmt.Errorf("supervise %s: %w", s.command[0], err)
	}
	p := &process{supervisor: supervisor, orders: orders, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = supervisor.Wait()
	}()
	return p, nil
}

// end asks the server to end and waits for it. When ctx ends first, end kills the
// server and returns an error.
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
		// The whole group: the supervisor and the server.
		_ = syscall.Kill(-p.supervisor.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
	return fmt.Errorf("killed, because it did not stop in time: %w", context.Cause(ctx))
}

// order has the supervisor signal the server. Where the supervisor has ended, so has
// the server: no error.
func (p *process) order(s syscall.Signal) {
	_, _ = fmt.Fprintf(p.orders, "%d\n", int(s))
}

// ended says how a command ended that end has not asked to.
func (p *process) ended() error {
	if p.err != nil {
		return fmt.Errorf("it ended by itself: %w", p.err)
	}
	return errors.New("it ended by itself, without a fault")
}
