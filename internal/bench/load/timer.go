package load

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer is a timer of the kernel. It is late by some 50 µs; Go's own timers are late
// by up to a millisecond in an idle process (https://github.com/golang/go/issues/53824),
// and the load would count that as the server's time.
type timer struct {
	*os.File // a timerfd, which Go waits for as it does for a socket
}

func newTimer() (timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return timer{}, fmt.Errorf("make a timer: %w", err)
	}
	return timer{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// wait waits until then. It fails once the timer is closed.
func (t timer) wait(then time.Time) error {
	left := time.Until(then)
	if left <= 0 {
		return nil
	}
	if err := t.set(left); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	var fired [8]byte // how often
	if _, err := t.Read(fired[:]); err != nil {
		return fmt.Errorf("wait for a timer: %w", err)
	}
	return nil
}

func (t timer) set(left time.Duration) error {
	conn, err := t.SyscallConn() // Fd would make reads block
	if err != nil {
		return err
	}
	closed := conn.Control(func(fd uintptr) {
		err = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(left.Nanoseconds())}, nil)
	})
	return cmp.Or(closed, err)
}
