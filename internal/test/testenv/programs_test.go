package testenv_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Programs builds a program again when its source has changed, and does not change the one that a
// test got before.
func TestPrograms(t *testing.T) {
	t.Parallel()
	root, source := t.TempDir(), t.TempDir()
	build := func(says string) (program string) {
		t.Helper()
		for name, text := range map[string]string{
			"go.mod": "module says\n\ngo 1.26\n", "main.go": fmt.Sprintf("package main\n\nfunc main() { print(%q) }\n", says),
		} {
			if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		dir, err := testenv.Programs(root, "says", source, ".")
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "says")
	}
	before, after := build("before"), build("after")
	for program, want := range map[string]string{before: "before", after: "after"} {
		if said, err := exec.CommandContext(t.Context(), program).CombinedOutput(); err != nil || string(said) != want {
			t.Errorf("the program says %q, want %q: %v", said, want, err)
		}
	}
}
