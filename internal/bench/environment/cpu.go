package environment

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

// CPU is CPU time by process: api, worker, peer, redis, postgres, and load, which is
// this process.
type CPU map[string]time.Duration

func (after CPU) since(before CPU) CPU {
	passed := maps.Clone(after)
	for name, at := range before {
		passed[name] -= at
	}
	return passed
}

// Micros is the time of some processes for each of n jobs, in µs.
func (spent CPU) Micros(n int, processes ...string) float64 {
	var sum time.Duration
	for _, process := range processes {
		sum += spent[process]
	}
	return sum.Seconds() * 1e6 / float64(n)
}

// cpu is what all processes have spent so far.
func (e *Environment) cpu() (CPU, error) {
	found := CPU{}
	add := func(name string, pid int) error {
		stat, err := readStat(pid)
		found[name] += stat.own
		return err
	}
	for _, p := range slices.Concat(e.Servers, e.Workers) {
		if err := add(p.Name, p.PID()); err != nil {
			return nil, err
		}
	}
	for _, server := range e.redis {
		if err := add("redis", server.PID()); err != nil {
			return nil, err
		}
	}
	var err error
	if found["postgres"], err = treeTime(e.Postgres.PID()); err != nil {
		return nil, err
	}
	return found, add("load", os.Getpid())
}

// CPUDuring is what all processes spend in a span without a load.
func (e *Environment) CPUDuring(ctx context.Context, span time.Duration) (CPU, time.Duration, error) {
	began := time.Now()
	spent, err := e.CPUOf(func() error { return Sleep(ctx, span) })
	return spent, time.Since(began), err
}

// CPUOf is what all processes spend while do runs.
func (e *Environment) CPUOf(do func() error) (CPU, error) {
	before, err := e.cpu()
	if err != nil {
		return nil, err
	}
	if err := do(); err != nil {
		return nil, err
	}
	after, err := e.cpu()
	return after.since(before), err
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

// treeTime is the CPU time of a process, its children and its ended children.
func treeTime(pid int) (time.Duration, error) {
	root, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	total := root.own + root.ended
	folders, _ := filepath.Glob("/proc/[0-9]*") // fails on a bad pattern only
	for _, folder := range folders {
		child, _ := strconv.Atoi(filepath.Base(folder))
		if s, err := readStat(child); err == nil && s.parent == pid { // else it has ended meanwhile
			total += s.own
		}
	}
	return total, nil
}
