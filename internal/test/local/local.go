// Package local runs a private Postgres and a private Redis, for `make run` and for
// tests, from the binaries that the machine has. The servers listen on 127.0.0.1 alone, or
// on the address of the test's Host, ask for a password, never run as root, and end with the
// process that started them, however that process ends.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyWait      = 2 * time.Minute // bounds the recovery after a crash
	readyTick      = 10 * time.Millisecond
	pingWait       = 5 * time.Second
	launchAttempts = 10
	launchTick     = 200 * time.Millisecond
	strangeWait    = 5 * time.Second // for a server to find its port taken
)

// errStrange is an answer that does not fit the folder: another server has the port, or the
// folder's password is not the one in the data.
var errStrange = errors.New("another server has the port, or this one has another password")

// instance is what all servers have in common: one server on one folder and one port, under a
// supervisor.
type instance struct {
	name       string
	folder     *folder
	host       *Host
	pidFile    string                          // in the folder; the server writes it
	stopSignal syscall.Signal                  // ends it in order
	killSignal syscall.Signal                  // ends it as a crash would
	prepare    func(ctx context.Context) error // before each start; does what is missing
	command    func(port int) ([]string, error)
	ping       func(ctx context.Context, port int) error
	say        Say

	mu      sync.Mutex // one of Stop, Kill, Restart at a time; guards what follows
	port    int        // 0 until the first start, then always the same
	process *process   // nil while stopped
}

// Say receives a sentence about each step that takes long or may surprise. It may be nil.
type Say func(sentence string)

func (say Say) f(format string, args ...any) {
	if say != nil {
		say(fmt.Sprintf(format, args...))
	}
}

// Stop shuts the server down in order; its data stays, and Restart may follow.
// When ctx ends first the server is killed, and that is an error.
func (i *instance) Stop(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stop(ctx)
}

func (i *instance) stop(ctx context.Context) error {
	if i.process == nil {
		return nil
	}
	err := i.process.end(ctx, i.stopSignal, i.killSignal)
	i.process = nil
	i.folder.unlock()
	if err != nil {
		return fmt.Errorf("stop %s: %w", i.name, err)
	}
	return nil
}

// Kill ends the server as a crash would: it flushes nothing and tells no client.
func (i *instance) Kill() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	err := i.process.end(ctx, i.killSignal, i.killSignal)
	i.process = nil
	i.folder.unlock()
	if err != nil {
		return fmt.Errorf("kill %s: %w", i.name, err)
	}
	return nil
}

// Restart starts the server again on the same port and data. One that still
// runs is stopped in order first.
func (i *instance) Restart(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.stop(ctx); err != nil {
		return err
	}
	return i.start(ctx)
}

// Remove stops the server and deletes its data for good.
func (i *instance) Remove(ctx context.Context) error {
	return errors.Join(i.Stop(ctx), i.folder.remove())
}

// PID is the server's process, 0 while it is stopped.
func (i *instance) PID() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil {
		return 0
	}
	return i.process.server
}

// Done is closed when the server that runs now ends, stopped or by itself.
func (i *instance) Done() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil {
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return i.process.done
}

// Host is where the server runs; nil is here.
func (i *instance) Host() *Host { return i.host }

// Dir is where the data and the server's log really are.
func (i *instance) Dir() string { return i.folder.path }

func (i *instance) start(ctx context.Context) error {
	if err := i.folder.lock(); err != nil {
		return fmt.Errorf("start %s: %w", i.name, err)
	}
	for _, step := range []func(context.Context) error{i.reclaim, i.folder.rotateLog, i.prepare, i.launch} {
		if err := step(ctx); err != nil {
			i.folder.unlock()
			return fmt.Errorf("start %s: %w", i.name, err)
		}
	}
	return nil
}

// launch starts the server on a port that the kernel says is free. Another process may
// bind the port before the server does; then launch tries again, on another port at the
// first start, on the same port at a restart, because clients know that port.
func (i *instance) launch(ctx context.Context) error {
	tick := time.NewTicker(launchTick)
	defer tick.Stop()
	for attempt := 1; ; attempt++ {
		port, err := i.choosePort(ctx)
		if err != nil {
			return err
		}
		i.process, err = i.try(ctx, port)
		if err == nil {
			i.port = port
			return nil
		}
		if attempt == launchAttempts || !passing(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (i *instance) choosePort(ctx context.Context) (int, error) {
	if i.port != 0 {
		return i.port, nil
	}
	return freePort(ctx)
}

func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close() //nolint:errcheck // only its number is needed
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return strconv.Atoi(port)
}

// startError is a start that failed, with the server's log.
type startError struct {
	cause error
	path  string // of the log
	said  string
}

func (e *startError) Error() string {
	return fmt.Sprintf("%v; the end of %s:\n%s", e.cause, e.path, e.said)
}

func (e *startError) Unwrap() error { return e.cause }

// passing returns whether the next attempt may succeed: another process has taken the
// port, or the last processes of a killed server have not ended yet.
func passing(err error) bool {
	failed, ok := errors.AsType[*startError](err)
	return ok &&
		(strings.Contains(failed.said, "Address already in use") || strings.Contains(failed.said, "is still in use"))
}

// try starts the server on one port and waits until it answers.
func (i *instance) try(ctx context.Context, port int) (*process, error) {
	command, err := i.command(port)
	if err != nil {
		return nil, err
	}
	log, err := i.folder.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the server writes to its own copy
	p, err := i.folder.start(ctx, i.host, log.File, i.stopSignal, command)
	if err != nil {
		return nil, err
	}
	err = i.awaitReady(ctx, p, port)
	if err == nil {
		p.server, err = i.folder.readPID(i.pidFile)
	}
	if err != nil {
		return nil, i.giveUp(ctx, p, &startError{cause: err, path: log.Name(), said: log.tail()})
	}
	return p, nil
}

// giveUp ends a server that did not get ready, and returns why.
func (i *instance) giveUp(ctx context.Context, p *process, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	return errors.Join(why, p.end(ctx, i.killSignal, i.killSignal))
}

func (i *instance) awaitReady(ctx context.Context, p *process, port int) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	started := time.Now()
	tick := time.NewTicker(readyTick)
	defer tick.Stop()
	for {
		err := i.pingOnce(ctx, port)
		if err == nil {
			return nil
		}
		// At first it may be the answer of another server, which has the port or had it until now.
		if errors.Is(err, errStrange) && time.Since(started) > strangeWait {
			return err
		}
		select {
		case <-p.done:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("%w before it answered: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func (i *instance) pingOnce(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, pingWait)
	defer cancel()
	return i.ping(ctx, port)
}

// reclaim ends a server that a killed owner left on this folder. The supervisor normally
// has done so already. This process holds the folder's lock, so no living owner uses
// that server.
func (i *instance) reclaim(ctx context.Context) error {
	pid, err := i.folder.readPID(i.pidFile)
	if err != nil {
		return nil //nolint:nilerr // no number, no server
	}
	serves, err := i.folder.serves(pid)
	if err != nil {
		return nil //nolint:nilerr // a server that is there will say so itself
	}
	if serves {
		i.say.f("Stopping %s (process %d), which an earlier run left behind.", i.name, pid)
		err = i.endOther(ctx, pid)
	}
	if err != nil {
		return err
	}
	// After a crash of the machine the number may belong to another process, which
	// Postgres would take for a server.
	if err := i.folder.root.Remove(i.pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear the last server's process number: %w", err)
	}
	return nil
}

// endOther ends a server on this folder that is not a child of this process.
func (i *instance) endOther(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, i.stopSignal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop process %d, which an earlier run left behind: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reclaimWait)
	defer cancel()
	tick := time.NewTicker(readyTick)
	defer tick.Stop()
	for {
		if serves, err := i.folder.serves(pid); err != nil || !serves {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("process %d still runs on %s; end it with: kill -KILL %d", pid, i.folder.path, pid)
		}
	}
}
