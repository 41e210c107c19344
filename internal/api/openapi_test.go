package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/passbook/passbook/internal/test/openapi"
)

func TestOpenAPI_IsValid(t *testing.T) {
	t.Parallel()
	faults, err := openapi.Validate(openAPIYAML)
	if err != nil || len(faults) > 0 {
		t.Error(faults, err)
	}
}

// Whatever the server answers is described, and whatever is described the
// server answers.
func TestOpenAPI_HasEveryRoute(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, o := range described(t) {
		known[o.Method+" "+o.Path] = true
	}
	served := map[string]bool{}
	for _, route := range start(t).api.app.GetRoutes(true) {
		path := route.Path
		for _, param := range route.Params {
			path = strings.Replace(path, ":"+param, "{"+param+"}", 1)
		}
		served[route.Method+" "+path] = true
	}
	for route := range maps.Clone(served) {
		if path, isHead := strings.CutPrefix(route, http.MethodHead+" "); isHead {
			if !served[http.MethodGet+" "+path] {
				t.Errorf("%s without GET", route)
			}
			delete(served, route)
		}
	}
	if !maps.Equal(known, served) || len(served) == 0 {
		t.Errorf("described: %q\nserved:    %q", slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(served)))
	}
}

// Each object of the contract is closed, so that one field more is a fault.
func TestOpenAPI_ObjectsAreClosed(t *testing.T) {
	t.Parallel()
	objects := 0
	for path, node := range contractNodes(t) {
		if _, ok := node["properties"]; !ok || node["type"] == nil || !strings.HasPrefix(path, "/components/schemas/") {
			continue
		}
		objects++
		if node["additionalProperties"] != false && !strings.Contains(path, "/then/") { // which narrows a closed one
			t.Errorf("%s is open", path)
		}
	}
	if objects == 0 {
		t.Error("found no object")
	}
}

// A reader sees an example of each text that a pattern describes. Without one the page at /docs makes up
// a text, which takes a third of the time that the page takes to show an operation.
func TestOpenAPI_PatternsHaveExamples(t *testing.T) {
	t.Parallel()
	nodes := contractNodes(t)
	patterns := 0
	for at, node := range nodes {
		if _, ok := node["pattern"].(string); !ok {
			continue
		}
		patterns++
		if parent := nodes[path.Dir(at)]; node["examples"] == nil && parent["example"] == nil {
			t.Errorf("%s has no example", at)
		}
	}
	if patterns == 0 {
		t.Error("found no pattern")
	}
}

// contractNodes are all objects of openapi.yaml by their paths in it.
func contractNodes(t *testing.T) map[string]map[string]any {
	t.Helper()
	var document map[string]any
	if err := yaml.Unmarshal(openAPIYAML, &document); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]map[string]any{}
	var visit func(at string, node any)
	visit = func(at string, node any) {
		switch node := node.(type) {
		case map[string]any:
			nodes[at] = node
			for name, child := range node {
				visit(at+"/"+strings.ReplaceAll(name, "/", "~1"), child)
			}
		case []any:
			for n, child := range node {
				visit(fmt.Sprint(at, "/", n), child)
			}
		}
	}
	visit("", document)
	return nodes
}

func TestOpenAPI_IsServed(t *testing.T) {
	t.Parallel()
	c := start(t).anonymous(t)
	asYAML := c.get("/openapi.yaml").want(http.StatusOK).wantHeader("Content-Type", "application/yaml")
	if string(asYAML.body) != string(openAPIYAML) {
		t.Error("another openapi.yaml is served")
	}
	asJSON := c.get("/openapi.json").want(http.StatusOK).wantHeader("Content-Type", "application/json")
	document := decode[map[string]json.RawMessage](asJSON)
	if string(document["openapi"]) != `"3.1.0"` {
		t.Errorf("openapi: %s", document["openapi"])
	}
	if faults, err := openapi.Validate(asJSON.body); err != nil || len(faults) > 0 {
		t.Error(faults, err)
	}
}

// The check that every answer in these tests goes through can fail.
func TestContract_CatchesWhatIsWrong(t *testing.T) {
	t.Parallel()
	const (
		account = `{"number":"1234","currency":"KRW","balance":1,"last_seq":1,"status":"open","created_at":"2026-01-02T03:04:05.000006Z"}`
		missing = `{"type":"urn:passbook:problem:account_not_found","title":"Not Found","status":404,` +
			`"detail":"d","code":"account_not_found","request_id":"r"}`
	)
	replace := func(from, to string) string { return strings.Replace(account, from, to, 1) }
	tests := map[string]struct {
		status int
		body   string
		header []string // names and values beside X-Request-Id
		ok     bool
	}{
		"OK":                {status: 200, body: account, ok: true},
		"OK/Problem":        {status: 404, body: missing, ok: true},
		"UnknownField":      {status: 200, body: replace(`"balance"`, `"blance":1,"balance"`)},
		"MissingField":      {status: 200, body: replace(`"last_seq":1,`, ``)},
		"WrongType":         {status: 200, body: replace(`"balance":1`, `"balance":"1"`)},
		"Fraction":          {status: 200, body: replace(`"balance":1`, `"balance":1.5`)},
		"TooLarge":          {status: 200, body: replace(`"balance":1`, `"balance":9007199254740992`)},
		"TimeInSeconds":     {status: 200, body: replace(`.000006Z`, `Z`)},
		"TimeElsewhere":     {status: 200, body: replace(`.000006Z`, `.000006+09:00`)},
		"NoJSON":            {status: 200, body: `{`},
		"UndocumentedCode":  {status: 404, body: strings.ReplaceAll(missing, "account_not_found", "gone")},
		"CodeOfAnother":     {status: 404, body: strings.ReplaceAll(missing, "account_not_found", "job_not_found")},
		"OtherStatus":       {status: 404, body: strings.Replace(missing, "404", "400", 1)},
		"Status":            {status: 201, body: account},
		"UnknownHeader":     {status: 200, body: account, header: []string{"X-Powered-By", "Passbook"}},
		"NoRequestID":       {status: 200, body: account, header: []string{"X-Request-Id", ""}},
		"BadRequestID":      {status: 200, body: account, header: []string{"X-Request-Id", "a b"}},
		"Cacheable":         {status: 200, body: account, header: []string{"Cache-Control", ""}},
		"CacheableProblem":  {status: 404, body: missing, header: []string{"Cache-Control", "no-cache"}},
		"Sniffable":         {status: 200, body: account, header: []string{"X-Content-Type-Options", ""}},
		"ContentType":       {status: 200, body: account, header: []string{"Content-Type", "text/plain"}},
		"ProblemAsJSON":     {status: 404, body: missing, header: []string{"Content-Type", "application/json"}},
		"NoWWWAuthenticate": {status: 401, body: strings.NewReplacer("404", "401", "account_not_found", "unauthenticated").Replace(missing)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			header := http.Header{
				"X-Request-Id": {"r"}, "Content-Type": {"application/json"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"},
			}
			if test.status >= 400 {
				header.Set("Content-Type", "application/problem+json")
			}
			for pair := range slices.Chunk(test.header, 2) {
				if header.Del(pair[0]); pair[1] != "" {
					header.Set(pair[0], pair[1])
				}
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://test/v1/accounts/1234", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer t")
			faults := againstContract(t, req, "", answer{t: t, status: test.status, header: header, body: []byte(test.body)})
			if (len(faults) == 0) != test.ok {
				t.Errorf("faults: %q", faults)
			}
		})
	}
}

func TestContract_CatchesWrongRequests(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		target, body, key string
		ok                bool
	}{
		"OK":        {"/v1/accounts/1234/deposits", `{"amount":1}`, "k", true},
		"OK/Quoted": {"/v1/accounts/1234/deposits", `{"amount":1,"description":"d"}`, `"k"`, true},
		"NoKey":     {"/v1/accounts/1234/deposits", `{"amount":1}`, "", false},
		"Field":     {"/v1/accounts/1234/deposits", `{"amount":1,"x":1}`, "k", false},
		"Type":      {"/v1/accounts/1234/deposits", `{"amount":"1"}`, "k", false},
		"NoBody":    {"/v1/accounts/1234/deposits", ``, "k", false},
		"Query":     {"/v1/accounts/1234/deposits?x=1", `{"amount":1}`, "k", false},
		"Number":    {"/v1/accounts/123/deposits", `{"amount":1}`, "k", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := theContract()
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://test"+test.target, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer t")
			req.Header.Set("Content-Type", "application/json")
			if test.key != "" {
				req.Header.Set("Idempotency-Key", test.key)
			}
			if faults := c.CheckRequest(req, test.body); (len(faults) == 0) != test.ok {
				t.Errorf("faults: %q", faults)
			}
		})
	}
}
