package main

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm wakes some 50 µs after the time it is set to. Go's own timers are late by up to
// a millisecond where a process rests, for it waits for them in whole ones
// (https://github.com/golang/go/issues/53824), and that would be told as the bank's.
type alarm struct {
	*os.File // a timerfd, which Go waits for as it does for a socket
}

func newAlarm() (alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return alarm{}, fmt.Errorf("make a timer: %w", err)
	}
	return alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// wait waits until then, or with an error until the alarm is closed.
func (a alarm) wait(then time.Time) error {
	left := time.Until(then)
	if left <= 0 {
		return nil
	}
	if err := a.set(left); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	var wentOff [8]byte // how often
	if _, err := a.Read(wentOff[:]); err != nil {
		return fmt.Errorf("wait for a timer: %w", err)
	}
	return nil
}

func (a alarm) set(left time.Duration) error {
	conn, err := a.SyscallConn() // Fd would make reads block
	if err != nil {
		return err
	}
	closed := conn.Control(func(fd uintptr) {
		err = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(left.Nanoseconds())}, nil)
	})
	return cmp.Or(closed, err)
}
