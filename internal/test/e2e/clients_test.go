//go:build clients

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

const root = "../../.."

// A client in TypeScript that is made from openapi.yaml, and curl, run the quick start.
// Prism stands between them and the API, and finds every request and answer as described.
func TestClients(t *testing.T) {
	t.Parallel()
	s := newSystem(t, plain, 1, 1)
	front := "http://" + testenv.Prism(t, root, strings.TrimPrefix(s.api(0), "http://"))
	t.Run("TypeScript", func(t *testing.T) {
		runClient(t, exec.CommandContext(t.Context(), "node", root+"/.ci/api/build/quickstart.js", front))
	})
	t.Run("curl", func(t *testing.T) {
		out := runClient(t, exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", quickStart(t, front)))
		if strings.Contains(out, `"title"`) { // of a problem, the API's or Prism's
			t.Error("a request was refused")
		}
	})
	s.drained()
	s.verify()
}

// The example in TypeScript of docs/clients.md goes the way of the others: TestExamplesForClients.
func TestClients_Example(t *testing.T) {
	t.Parallel()
	x := newExamples(t)
	file := filepath.Join(t.TempDir(), "example.mjs")
	if err := os.WriteFile(file, []byte(x.throughTheNetwork(x.read(".ci", "api", "build", "example.js"))), 0o600); err != nil {
		t.Fatal(err)
	}
	x.run(t, "invoice-1003", 1, exec.CommandContext(t.Context(), "node", file))
}

func runClient(t *testing.T, client *exec.Cmd) string {
	t.Helper()
	out, err := client.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// quickStart is the README's script, for another address.
func quickStart(t *testing.T, url string) string {
	t.Helper()
	readme, err := os.ReadFile(root + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "### A first deposit")
	_, script, _ := strings.Cut(section, "```sh\n")
	script, _, _ = strings.Cut(script, "```")
	const address = "http://127.0.0.1:8080"
	if !strings.Contains(script, address) {
		t.Fatalf("no script for %s in the README", address)
	}
	return strings.ReplaceAll(script, address, url)
}
