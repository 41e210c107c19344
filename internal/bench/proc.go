package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc/PID/stat; Linux has no other (proc(5),
// sysconf(_SC_CLK_TCK)).
const clockTick = 10 * time.Millisecond

// spent is CPU time by who spent it: api, worker, peer, redis, postgres, and
// load, which is us.
type spent map[string]time.Duration

func (after spent) since(before spent) spent {
	passed := maps.Clone(after)
	for name, at := range before {
		passed[name] -= at
	}
	return passed
}

// cpu is what everybody has spent so far.
func (s *scene) cpu() (spent, error) {
	found := spent{}
	add := func(name string, pid int) error {
		stat, err := readStat(pid)
		found[name] += stat.own
		return err
	}
	for _, p := range slices.Concat(s.doors, s.workers) {
		if err := add(p.name, p.pid()); err != nil {
			return nil, err
		}
	}
	if s.redis != nil {
		if err := add("redis", s.redis.PID()); err != nil {
			return nil, err
		}
	}
	var err error
	if found["postgres"], err = familyTime(s.postgres.PID()); err != nil {
		return nil, err
	}
	return found, add("load", os.Getpid())
}

// cpuDuring is what everybody spends in a span of doing nothing about it.
func (s *scene) cpuDuring(ctx context.Context, span time.Duration) (spent, time.Duration, error) {
	before, err := s.cpu()
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	if err := sleep(ctx, span); err != nil {
		return nil, 0, err
	}
	after, err := s.cpu()
	return after.since(before), time.Since(began), err
}

// stat is a process's line in /proc.
type stat struct {
	parent int
	own    time.Duration // user and system time
	ended  time.Duration // of children that have ended
}

func readStat(pid int) (stat, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("read CPU time: %w", err)
	}
	// The name, in parentheses, may hold anything; field 4 is the second after it.
	fields := strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:]))
	ticks := func(field int) time.Duration {
		n, _ := strconv.ParseInt(fields[field-3], 10, 64) // the kernel's own number
		return time.Duration(n) * clockTick
	}
	parent, _ := strconv.Atoi(fields[1])
	return stat{parent: parent, own: ticks(14) + ticks(15), ended: ticks(16) + ticks(17)}, nil
}

// familyTime is what a process, its children and those that have ended have spent.
func familyTime(pid int) (time.Duration, error) {
	head, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	total := head.own + head.ended
	folders, _ := filepath.Glob("/proc/[0-9]*") // fails on a bad pattern only
	for _, folder := range folders {
		child, _ := strconv.Atoi(filepath.Base(folder))
		if s, err := readStat(child); err == nil && s.parent == pid { // else it has ended meanwhile
			total += s.own
		}
	}
	return total, nil
}

// peakMemory is the most that a process has had resident, in bytes.
func peakMemory(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	_, after, found := strings.Cut(string(status), "VmHWM:")
	if !found {
		return 0, fmt.Errorf("process %d has no memory: it has ended", pid)
	}
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	return kib << 10, err
}
