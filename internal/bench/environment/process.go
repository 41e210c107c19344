package environment

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// readyWait bounds a start, and endWait an end.
const (
	readyWait = 30 * time.Second
	endWait   = 30 * time.Second
	keptLines = 50 // of a program's log, for when it fails
)

// launcher starts programs from one thread that lives as long as this process. The
// kernel kills the programs when the thread ends, so no program outlives the process.
var launcher = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go launch(work)
	return work
})

func launch(work <-chan func()) {
	runtime.LockOSThread()
	for do := range work {
		do()
	}
}

// Process is a running program.
type Process struct {
	Name  string
	cmd   *exec.Cmd
	ready chan struct{} // closed once the program says that it is ready
	done  chan struct{} // closed once the program has ended
	err   error         // how it ended; to be read after done

	mu      sync.Mutex // guards the rest
	addr    string     // of its API
	opsAddr string
	lines   []string // the last of its log
}

// startProcess starts a program and waits until it says that it is ready. Ctrl-C in
// the terminal doesn't reach it: the environment stops its processes in order.
func startProcess(ctx context.Context, path string, args, env []string) (*Process, error) {
	p := &Process{Name: filepath.Base(path), ready: make(chan struct{}), done: make(chan struct{})}
	if p.Name == "bench" {
		p.Name = args[0]
	}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), path, args...) //nolint:gosec // what we have built
	p.cmd.Env = env
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	output, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	started := make(chan error)
	launcher() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	go func() {
		defer close(p.done)
		p.read(output)
		p.err = p.cmd.Wait()
	}()
	return p, p.awaitReady(ctx)
}

// awaitReady kills a process that does not get ready.
func (p *Process) awaitReady(ctx context.Context) error {
	timer := time.NewTimer(readyWait)
	defer timer.Stop()
	why := errors.New("it ended")
	select {
	case <-p.ready:
		return nil
	case <-p.done:
	case <-timer.C:
		why = errors.New("it did not get ready")
	case <-ctx.Done():
		why = ctx.Err()
	}
	_ = p.cmd.Process.Kill() // an error says that it is gone
	<-p.done
	return fmt.Errorf("start %s: %w\n%s", p.Name, why, p.log())
}

// read keeps the end of the program's log and reads the addresses from it.
func (p *Process) read(output io.Reader) {
	for lines := bufio.NewScanner(output); lines.Scan(); {
		var line struct {
			Msg      string `json:"msg"`
			HTTPAddr string `json:"http_addr"`
			OpsAddr  string `json:"ops_addr"`
		}
		p.mu.Lock()
		p.lines = append(p.lines[max(0, len(p.lines)-keptLines):], lines.Text())
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == p.Name+" ready" {
			p.addr, p.opsAddr = line.HTTPAddr, line.OpsAddr
			close(p.ready)
		}
		p.mu.Unlock()
	}
}

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Address is where the program serves its API.
func (p *Process) Address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// opsAddress is where the program serves its metrics and profiles.
func (p *Process) opsAddress() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opsAddr
}

func (p *Process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// stop asks the program to end in order and waits. It kills a program that does not
// end in time, and returns an error.
func (p *Process) stop(ctx context.Context) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error says that it is gone
	timer := time.NewTimer(endWait)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	if p.err != nil {
		return fmt.Errorf("stop %s: %w\n%s", p.Name, p.err, p.log())
	}
	return nil
}
