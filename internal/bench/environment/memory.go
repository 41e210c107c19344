package environment

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// PeakMemory is the most that a process has had resident, in bytes.
func PeakMemory(pid int) (int64, error) {
	return readKiB(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:")
}

// OwnMemory is the memory that processes do not share with others, in bytes of each on average:
// what they have written to, a share of what they inherited, and their page tables.
func OwnMemory(pids []int) (int64, error) {
	var total, counted int64
	for _, pid := range pids {
		own, err := readKiB(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss_Anon:")
		if err == nil {
			var tables int64
			tables, err = readKiB(fmt.Sprintf("/proc/%d/status", pid), "VmPTE:")
			own += tables
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH): // it has ended meanwhile
		case err != nil:
			return 0, err
		default:
			total, counted = total+own, counted+1
		}
	}
	if counted == 0 {
		return 0, errors.New("read memory: there is no process")
	}
	return total / counted, nil
}

// readKiB reads a line of a file in /proc, in bytes.
func readKiB(path, name string) (int64, error) {
	file, err := os.Open(path) //nolint:gosec // of the kernel
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), name); found {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	return 0, fmt.Errorf("read memory: %s has no %s: the process has ended", path, name)
}
