package environment

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/bench/report"
)

// Describe describes the machine and its servers.
func (b *Base) Describe(ctx context.Context) (m report.Machine, err error) {
	m = report.Machine{CPUs: runtime.NumCPU(), CPU: cpuName(), Go: runtime.Version()}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty where unknown
	m.Kernel = strings.TrimSpace(string(release))
	conn, err := pgx.Connect(ctx, b.Postgres.URL())
	if err != nil {
		return report.Machine{}, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is pending on it
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version')`).Scan(&m.Postgres); err != nil {
		return report.Machine{}, fmt.Errorf("ask Postgres for its version: %w", err)
	}
	version, err := exec.CommandContext(ctx, "redis-server", "--version").Output()
	if err != nil {
		return report.Machine{}, fmt.Errorf("ask Redis for its version: %w", err)
	}
	_, after, _ := strings.Cut(string(version), "v=")
	m.Redis, _, _ = strings.Cut(after, " ")
	m.FlushMicros, err = flushMicros(filepath.Dir(b.Postgres.Dir()))
	return m, err
}

func cpuName() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // empty where unknown
	_, after, _ := strings.Cut(string(info), "model name")
	line, _, _ := strings.Cut(after, "\n")
	return strings.Join(strings.Fields(strings.TrimLeft(line, "\t :")), " ")
}

// flushMicros times flushes of the disk that a folder is on.
func flushMicros(folder string) (float64, error) {
	const flushes = 101
	file, err := os.CreateTemp(folder, "passbook-flush-")
	if err != nil {
		return 0, fmt.Errorf("time a flush: %w", err)
	}
	defer os.Remove(file.Name()) //nolint:errcheck // a leftover does no harm
	defer file.Close()           //nolint:errcheck // nothing in it matters
	var times []time.Duration
	for range flushes {
		began := time.Now()
		if _, err := file.WriteAt(make([]byte, 8<<10), 0); err != nil {
			return 0, fmt.Errorf("time a flush: %w", err)
		}
		if err := syscall.Fdatasync(int(file.Fd())); err != nil {
			return 0, fmt.Errorf("time a flush: %w", err)
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return float64(times[len(times)/2].Nanoseconds()) / 1000, nil
}

// checkDisk refuses a folder in memory, where durability costs nothing.
func checkDisk(folder string) error {
	const tmpfs = 0x01021994 // statfs(2)
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	if fs.Type == tmpfs {
		return errors.New("the folder of temporary files is in memory, where a flush costs nothing; name one on a disk: TMPDIR=/var/tmp")
	}
	return nil
}
