package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

// skewVariable tells a program of the variant skewed by how many seconds its
// clock is wrong.
const skewVariable = "PASSBOOK_TEST_CLOCK_SKEW"

// skewed is how to build programs whose every clock is wrong: it is the standard
// library's time.Now itself, so that no library of theirs knows better.
var skewed = sync.OnceValues(func() (variant, error) {
	root, err := exec.CommandContext(context.Background(), "go", "env", "GOROOT").Output()
	if err != nil {
		return variant{}, fmt.Errorf("find Go's sources: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return variant{}, err
	}
	for old, next := range map[string]string{
		"import (\n": "import (\n\t\"syscall\"\n",
		"\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n": "\tsec, nsec, mono := runtimeNow()\n\tsec += skew\n\tif mono == 0 {\n",
	} {
		if n := bytes.Count(source, []byte(old)); n != 1 {
			return variant{}, fmt.Errorf("%s has %q %d times, want once: this Go needs another overlay", original, old, n)
		}
		source = bytes.Replace(source, []byte(old), []byte(next), 1)
	}
	source = append(source, readSkew...)
	dir, err := os.MkdirTemp("", "passbook-clocks-")
	if err != nil {
		return variant{}, err
	}
	testenv.AtEnd(func() error { return os.RemoveAll(dir) })
	overlay, replacement := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "time.go")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {original: replacement}})
	if err != nil {
		return variant{}, err
	}
	err = errors.Join(os.WriteFile(replacement, source, 0o600), os.WriteFile(overlay, replace, 0o600))
	return variant{name: "skewed", flags: []string{"-overlay=" + overlay}}, err
})

// readSkew is added to package time.
const readSkew = `
var skew = func() int64 {
	text, _ := syscall.Getenv("` + skewVariable + `")
	n, _ := atoi(text) // none is 0
	return int64(n)
}()
`

func skewEnv(skew time.Duration) string {
	return fmt.Sprintf("%s=%d", skewVariable, int(skew.Seconds()))
}

// startSkewed starts a program whose clock is wrong by skew.
func startSkewed(t *testing.T, s *system, name string, skew time.Duration) *process {
	t.Helper()
	v, err := skewed()
	if err != nil {
		t.Fatal(err)
	}
	p := startVariant(t, v, name, append(s.env(), skewEnv(skew)))
	checkSkew(t, p, skew)
	return p
}

// checkSkew makes sure that the process's clock is as wrong as it should be, by
// the time of the first line that it logged.
func checkSkew(t *testing.T, p *process, skew time.Duration) {
	t.Helper()
	var line struct {
		Time time.Time `json:"time"`
	}
	first, _, _ := strings.Cut(p.log(), "\n")
	if err := json.Unmarshal([]byte(first), &line); err != nil {
		t.Fatalf("%s logged %q: %v", p.name, first, err)
	}
	if wrong := time.Until(line.Time); (wrong - skew).Abs() > 5*time.Minute {
		t.Fatalf("the clock of %s is wrong by %v, want %v", p.name, wrong, skew)
	}
}
