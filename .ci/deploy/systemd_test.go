package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// exposure is the most that systemd may find a unit exposed, in tenths: it calls up to 20 well.
const exposure = "20"

// systemd knows every setting of the units, finds what they name, and finds them well confined.
func TestSystemd(t *testing.T) {
	units, err := filepath.Glob(filepath.Join(root, "systemd", "*.service"))
	if err != nil || len(units) != 3 {
		t.Fatalf("%d units, %v", len(units), err)
	}
	dir := t.TempDir()
	programs := strings.NewReplacer("ExecStart=/usr/local/bin/api", "ExecStart=/bin/true", "ExecStart=/usr/local/bin/worker", "ExecStart=/bin/true") // not installed here
	var copies []string
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		changed := filepath.Join(dir, filepath.Base(unit))
		if err := os.WriteFile(changed, []byte(programs.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, changed)
	}
	analyze := func(args ...string) {
		t.Helper()
		if said, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput(); err != nil || args[0] == "verify" && len(said) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, said)
		}
	}
	analyze(append([]string{"verify"}, copies...)...)
	for _, unit := range copies {
		analyze("security", "--offline=true", "--threshold="+exposure, unit)
	}
}
