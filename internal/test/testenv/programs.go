package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

// Programs runs `go build` in the folder source, and returns a folder with the programs, which is
// deleted after the last test. root is the repository's folder, and name identifies source and
// flags: two packages that name the same build share its programs.
//
// The go command caches packages, but links a program again unless the last one is still in its
// place. So it builds into a folder under root's .local, which is kept, and the tests get a copy. A
// later build of other sources does not change the copy.
func Programs(root, name, source string, arguments ...string) (dir string, err error) {
	kept, err := filepath.Abs(filepath.Join(root, ".local", "tests", name))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(kept, 0o755); err != nil { //nolint:gosec // programs are no secret
		return "", fmt.Errorf("build: %w", err)
	}
	folder, err := os.Open(kept) //nolint:gosec // in the repository
	if err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	defer folder.Close() //nolint:errcheck // it was only locked, until here
	if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("build: lock %s: %w", kept, err)
	}
	// Without what a debugger reads, linking takes half as long.
	arguments = slices.Concat([]string{"build", "-buildvcs=false", "-ldflags=-w", "-o", kept + "/"}, arguments)
	build := exec.CommandContext(context.Background(), "go", arguments...) //nolint:gosec // a test's own arguments
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	if dir, err = os.MkdirTemp("", "passbook-programs-"); err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	AtEnd(func() error { return os.RemoveAll(dir) })
	if err := os.CopyFS(dir, os.DirFS(kept)); err != nil {
		return "", errors.Join(fmt.Errorf("build: %w", err), os.RemoveAll(dir))
	}
	return dir, nil
}
