package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/local"
)

// Prism starts Prism as a proxy before the API at addr and returns the proxy's address.
// Prism answers with an error of its own where a request or an answer is not as
// openapi.yaml says. root is the repository's folder; make test-clients installs Prism
// there. Prism stops when the test ends.
func Prism(t testing.TB, root, addr string) string {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), "prism.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close() //nolint:errcheck // Prism has its own
	prism, err := local.StartProgram(t.Context(), local.ProgramConfig{
		Name: "Prism",
		Command: []string{
			filepath.Join(root, ".ci/api/node_modules/.bin/prism"), "proxy", filepath.Join(root, "internal/api/openapi.yaml"),
			"http://" + addr, "--errors", "--cors=false", "--host", "127.0.0.1", "--port", "0",
		},
		Env:    os.Environ(),
		Output: output,
	})
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, prism.Stop)
	log := func() string {
		text, _ := os.ReadFile(output.Name())
		return string(text)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Prism:\n%s", log())
		}
	})
	var front string
	const start = 2 * time.Minute // Node reads all of Prism first, for more than 20 s on a busy machine
	eventuallyIn(t, start, "Prism to listen", func() bool {
		_, said, found := strings.Cut(log(), "Prism is listening on http://")
		front, _, _ = strings.Cut(said, "\n")
		return found && front != ""
	})
	return front
}
