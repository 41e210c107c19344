package fuzz

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/passbook/passbook/internal/test/contract"
)

// document and theContract are read once: it takes a second.
var document = sync.OnceValues(func() ([]byte, error) { return os.ReadFile("../../api/openapi.yaml") })

var theContract = sync.OnceValues(func() (*contract.Contract, error) {
	text, err := document()
	if err != nil {
		return nil, err
	}
	return contract.New(text)
})

func newSource(t *testing.T, seed uint64) *Source {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	document, err := document()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSource(document, c, seed, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.SetCaller("a.b.c", "alice@example.com", "a long enough password")
	return s
}

func (r Request) parsed(t *testing.T) (*http.Request, string) {
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(r.Text())))
	if err != nil {
		t.Fatalf("%q: %v", r.Text(), err)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		t.Fatalf("%q: %v", r.Text(), err)
	}
	req.URL.Scheme, req.URL.Host = "http", req.Host
	return req, string(body)
}

func TestSource_MakesValidRequestsForEveryRoute(t *testing.T) {
	t.Parallel()
	s := newSource(t, 1)
	for _, route := range s.contract.Routes {
		t.Run(route.String(), func(t *testing.T) {
			const some = 50
			for range some {
				r := s.valid(route)
				req, body := r.parsed(t)
				found, ok := s.contract.Find(req.Method, req.URL.EscapedPath())
				if !ok || found.String() != route.String() {
					t.Fatalf("%q is for %s", r.Text(), found)
				}
				if IsSecured(route) != (r.Token() != "") && IsSecured(route) {
					t.Errorf("no token: %q", r.Text())
				}
				for _, fault := range s.contract.CheckValidity(route, req, body) {
					t.Errorf("%s\n%q", fault, r.Text())
				}
			}
		})
	}
}

func TestSource_RepeatsASeed(t *testing.T) {
	t.Parallel()
	const some = 300
	first, second, other := newSource(t, 7), newSource(t, 7), newSource(t, 8)
	differ := false
	for range some {
		r := first.Next()
		if again := second.Next(); r.Text() != again.Text() {
			t.Fatalf("%q\n%q", r.Text(), again.Text())
		}
		differ = differ || r.Text() != other.Next().Text()
	}
	if !differ {
		t.Error("another seed makes the same requests")
	}
}

func TestSource_LearnsFromAnswers(t *testing.T) {
	t.Parallel()
	s := newSource(t, 1)
	r := s.Begin()[0]
	s.Learn(r, contract.Answer{Status: http.StatusCreated, Body: []byte(`{"number":"1234-learned","balance":1}`)})
	s.Learn(r, contract.Answer{Status: http.StatusConflict, Body: []byte(`{"number":"1234-refused"}`)})
	const some = 200
	found := 0
	for range some {
		text := s.Next().Text()
		if strings.Contains(text, "1234-refused") {
			t.Fatalf("learned from a refusal: %q", text)
		}
		found += strings.Count(text, "/1234-learned")
	}
	if found == 0 {
		t.Error("no request is for the account")
	}
}

func TestSource_MakesValuesOutsideTheirBounds(t *testing.T) {
	t.Parallel()
	s := newSource(t, 1)
	route, _ := s.contract.Find(http.MethodPost, "/v1/accounts/1234/deposits")
	const some = 300
	missing := map[string]bool{`"amount":0`: true, `"amount":1.0`: true, `"amount":"1"`: true, `"amount":9007199254740992`: true}
	for range some {
		r := s.spoiled(route)
		for text := range missing {
			if strings.Contains(r.Body, text) {
				delete(missing, text)
			}
		}
	}
	if len(missing) > 0 {
		t.Errorf("no request has %v", missing)
	}
}

// An account's status is no job's.
func TestSource_LearnsOnlyWhatFits(t *testing.T) {
	t.Parallel()
	s := newSource(t, 1)
	s.known.add("status", "open")
	route, _ := s.contract.Find(http.MethodGet, "/v1/accounts/1234/jobs")
	const some = 100
	for range some {
		if r := s.valid(route); strings.Contains(r.Target, "status=open") {
			t.Fatalf("got %s", r.Target)
		}
	}
}

func TestShrink(t *testing.T) {
	t.Parallel()
	s := newSource(t, 1)
	route, _ := s.contract.Find(http.MethodPost, "/v1/accounts/1234/deposits")
	r := s.valid(route)
	r.Target += "?a=1&bad=2&c=3"
	r.tree = object{{"x", "y"}, {"amount", object{{"deep", []any{"1", "a bad word", true}}}}}
	r.Body, r.Chunk = encode(r.tree), 3
	smallest := Shrink(r, func(r Request) bool {
		return strings.Contains(r.Target, "bad=2") && strings.Contains(r.Body, "bad") && r.has("Authorization") && parse(r.Body) != nil
	})
	if !strings.HasSuffix(smallest.Target, "/deposits?bad=2") || smallest.Body != `{"":{"":["bad"]}}` || len(smallest.Headers) != 1 || smallest.Chunk != 0 {
		t.Errorf("got %q", smallest.Text())
	}
	raw := Shrink(Request{Raw: "GET / HTTP/1.1\r\nHost: h\r\nX-Bad: bad\r\n\r\n"}, func(r Request) bool { return strings.Contains(r.Raw, "bad") })
	if raw.Raw != "bad" {
		t.Errorf("got %q", raw.Raw)
	}
}

func TestRequest_RenewsItsKeys(t *testing.T) {
	t.Parallel()
	s := newSource(t, 1)
	route, _ := s.contract.Find(http.MethodPost, "/v1/accounts/1234/deposits")
	for {
		r := s.valid(route)
		if len(r.keys) == 0 {
			continue // the key is of another form
		}
		again := r.Renew(s.NewKey)
		if again.Key() == r.Key() || again.Key() == "" || again.Body != r.Body {
			t.Errorf("%q\n%q", r.Text(), again.Text())
		}
		return
	}
}

func TestRequest_Command(t *testing.T) {
	t.Parallel()
	r := Request{
		Method: "POST", Target: "/v1/accounts?a=%00", Version: version, Body: `{"a":"it's"}`,
		Headers: []Header{{headerHost, "h"}, {headerType, contentJSON}, {"X-Empty", ""}},
	}
	const want = `curl -sS -i --path-as-is -X POST -H 'Content-Type: application/json' -H 'X-Empty;' --data-binary '{"a":"it'\''s"}' 'http://127.0.0.1:1/v1/accounts?a=%00'`
	if got := r.Command("127.0.0.1:1"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What is no request for curl is printed byte by byte.
func TestRequest_CommandOfOddBytes(t *testing.T) {
	t.Parallel()
	r := Request{Raw: "G\x00T /'\\ HTTP/1.1\r\nHost: \xff%d\n\r\n\t"}
	script, _, found := strings.Cut(r.Command("127.0.0.1:1"), " | nc -N 127.0.0.1 1")
	if !found {
		t.Fatalf("got %s", script)
	}
	out, err := exec.CommandContext(t.Context(), "bash", "-c", script).Output()
	if err != nil || string(out) != r.Raw {
		t.Errorf("%s prints %q, %v; want %q", script, out, err, r.Raw)
	}
}

func TestTree_IsReadAsItIsWritten(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{}`, `[]`, `{"a":[1,{"b":null,"b":"<é>"}],"c":true}`, `"x"`, `9007199254740993`} {
		if got := encode(parse(text)); got != text {
			t.Errorf("got %s, want %s", got, text)
		}
	}
	for _, text := range []string{``, `{`, `{"a":1}x`, `[1,`} {
		if tree := parse(text); tree != nil {
			t.Errorf("%q: got %v", text, tree)
		}
	}
}
