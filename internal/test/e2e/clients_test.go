//go:build clients

package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/test/contract"
	"github.com/passbook/passbook/internal/test/fuzz"
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

// Requests that are made from openapi.yaml, valid ones for every route, go through Prism, which finds each
// request and answer as described. Prism knows no HEAD, and waits for the end of a stream that has none.
// Of a chunked body it sends on the chunks and a Content-Length too, which the API must refuse. It never
// answers to a body that is no JSON.
func TestClients_Fuzz(t *testing.T) {
	t.Parallel()
	f := newFuzzRun(t)
	source, err := fuzz.NewSource(f.document, f.contract, *fuzzSeed, 0)
	if err != nil {
		t.Fatal(err)
	}
	source.OnlyValid = true
	c := &fuzzClient{
		run: f, source: source, name: "prism", address: testenv.Prism(t, root, strings.TrimPrefix(f.system.api(0), "http://")),
		skips: func(r fuzz.Request) bool {
			return r.Method == http.MethodHead || r.Chunk > 0 || strings.HasSuffix(r.Route.Path, "/events") ||
				r.Body != "" && !json.Valid([]byte(r.Body)) // a smaller request of a finding
		},
		judge: prismFaults,
	}
	defer c.hangUp()
	asked := map[string]bool{}
	for range *fuzzRequests {
		route, err := c.step()
		if err != nil {
			t.Fatal(err)
		}
		asked[route.String()] = true
	}
	for _, route := range f.contract.Routes {
		if !asked[route.String()] && !strings.HasSuffix(route.Path, "/events") {
			t.Errorf("no request for %s", route)
		}
	}
	f.t.Log(f.progress())
	f.reconcile()
}

// prismFaults returns what Prism says of a request and its answer.
func prismFaults(x exchange) (faults []fuzzFault) {
	if len(x.answers) == 0 {
		faults = append(faults, fuzzFault{"no answer", fmt.Sprint(x.err)})
	}
	for _, a := range x.answers {
		for _, text := range prismSays(a) {
			faults = append(faults, fuzzFault{"Prism", text})
		}
	}
	return faults
}

// prismSays returns Prism's findings: in a header of the API's answer, or in an answer of its own.
func prismSays(a contract.Answer) (texts []string) {
	type violation struct {
		Location []any
		Message  string
	}
	var problem struct {
		Type, Detail string
		Validation   []violation
	}
	if header := a.Header.Get("Sl-Violations"); header != "" {
		if json.Unmarshal([]byte(header), &problem.Validation) != nil { // Prism cuts a long one
			return []string{header}
		}
	} else if json.Unmarshal(a.Body, &problem) != nil || !strings.HasPrefix(problem.Type, "https://stoplight.io/prism/errors") {
		return nil
	}
	for _, v := range problem.Validation {
		texts = append(texts, fmt.Sprintf("%v: %s", v.Location, v.Message))
	}
	if len(texts) == 0 {
		texts = []string{problem.Type + ": " + problem.Detail}
	}
	return texts
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
