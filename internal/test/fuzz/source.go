// Package fuzz makes HTTP requests from an OpenAPI document: valid ones, and valid ones with changes.
// A route that is added to the document is covered without a change here.
package fuzz

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"github.com/passbook/passbook/internal/test/contract"
)

const headerKey = "Idempotency-Key"

// Source makes the requests of one client, one after another. The same seed makes the same requests
// for the same answers. It is not for several goroutines.
type Source struct {
	OnlyValid bool // makes no changes

	contract *contract.Contract
	document map[string]any
	routes   []contract.Route // each as often as it is wanted
	rand     *rand.Rand
	patterns map[string]*rapid.Generator[string]
	prefix   string // of what has to be new, so that Sources don't meet
	count    int    // of such values so far
	spoil    bool   // the next value is to be one that its schema does not allow

	token  string
	known  known // of the caller
	others known // of the callers before
	sent   []Request
	links  []string // to next pages
}

// Bounds of what a Source remembers.
const (
	maxKnown = 64 // values under a name
	maxSent  = 32 // requests and links, each
)

// NewSource reads the document again, for what the contract's model does not keep.
func NewSource(document []byte, c *contract.Contract, seed uint64, n int) (*Source, error) {
	asJSON, err := yaml.YAMLToJSON(document)
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	s := &Source{
		contract: c,
		rand:     rand.New(rand.NewPCG(seed, uint64(n))), //nolint:gosec // requests that can be made again
		patterns: map[string]*rapid.Generator[string]{},
		prefix:   fmt.Sprintf("fuzz-%x-%d", seed, n),
		known:    known{}, others: known{},
	}
	decoder := json.NewDecoder(strings.NewReader(string(asJSON)))
	decoder.UseNumber() // a float would lose bounds
	if err := decoder.Decode(&s.document); err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	for _, route := range c.Routes {
		weight := 1
		if IsSecured(route) {
			weight = 4
		}
		if route.Method != "GET" {
			weight *= 2
		}
		s.routes = append(s.routes, slices.Repeat([]contract.Route{route}, weight)...)
	}
	return s, nil
}

// IsSecured reports whether the route asks for a token.
func IsSecured(route contract.Route) bool {
	return route.Operation.Security == nil || len(route.Operation.Security) > 0
}

// SetCaller makes the requests that follow those of another user.
func (s *Source) SetCaller(token, email, password string) {
	for name, values := range s.known {
		for _, value := range values {
			s.others.add(name, value)
		}
	}
	s.token, s.known, s.sent, s.links = token, known{}, nil, nil
	s.known.add("email", email)
	s.known.add("password", password)
}

// Begin makes the requests that a new caller sends first: they open two accounts.
func (s *Source) Begin() []Request {
	var all []Request
	for range 2 {
		r := Request{Method: "POST", Target: "/v1/accounts", Version: version, Headers: s.headers(true)}
		r.Route, _ = s.contract.Find(r.Method, r.Target)
		r.Headers = append(r.Headers, Header{headerType, contentJSON})
		r.tree = object{{"initial_deposit", json.Number("1000000")}}
		r.Body = encode(r.tree)
		all = append(all, r)
	}
	return all
}

// Next makes the next request.
func (s *Source) Next() Request {
	switch {
	case len(s.sent) > 0 && s.chance(5):
		return pick(s, s.sent).clone()
	case len(s.links) > 0 && s.chance(3):
		return s.follow(pick(s, s.links))
	}
	route := pick(s, s.routes)
	if !s.OnlyValid && s.chance(20) {
		return s.spoiled(route)
	}
	r := s.valid(route)
	if s.OnlyValid || s.chance(40) {
		return r
	}
	for range 1 + s.small(2) {
		s.change(&r)
	}
	return r
}

// spoiled makes a request in which one value is just not what the document allows.
func (s *Source) spoiled(route contract.Route) Request {
	s.spoil = true
	r := s.valid(route)
	if !s.spoil {
		r.Changes, r.Alone = []string{"a value outside its bounds"}, true
	}
	s.spoil = false
	return r
}

func (s *Source) follow(link string) Request {
	path, _, _ := strings.Cut(link, "?")
	route, _ := s.contract.Find("GET", path)
	return Request{Route: route, Method: "GET", Target: link, Version: version, Headers: s.headers(true)}
}

func (s *Source) headers(authorised bool) []Header {
	headers := []Header{{headerHost, "passbook.test"}}
	if authorised {
		headers = append(headers, Header{headerAuth, bearer + s.token})
	}
	return headers
}

// valid makes a request for the route that is as the document says.
func (s *Source) valid(route contract.Route) Request {
	r := Request{
		Route: route, Method: route.Method, Target: route.Path, Version: version,
		Headers: s.headers(IsSecured(route) || s.chance(20)),
	}
	if r.Method == "GET" && s.chance(10) {
		r.Method = "HEAD"
	}
	count := s.count
	item := s.at("paths", route.Path)
	operation := s.at("paths", route.Path, strings.ToLower(route.Method))
	var query []string
	for _, node := range slices.Concat(item.list("parameters"), operation.list("parameters")) {
		parameter := s.resolve(node)
		name := parameter.text("name")
		if parameter["required"] != true && !s.chance(40) {
			continue
		}
		value := fmt.Sprint(s.parameter(parameter))
		switch parameter.text("in") {
		case "path":
			r.Target = strings.Replace(r.Target, "{"+name+"}", url.PathEscape(value), 1)
		case "query":
			query = append(query, url.QueryEscape(name)+"="+url.QueryEscape(value))
		case "header":
			r.Headers = append(r.Headers, Header{name, value})
		}
	}
	if len(query) > 0 {
		s.rand.Shuffle(len(query), func(i, j int) { query[i], query[j] = query[j], query[i] })
		r.Target += "?" + strings.Join(query, "&")
	}
	if accept := s.accept(operation); accept != "" {
		r.Headers = append(r.Headers, Header{"Accept", accept})
	}
	s.addBody(&r, operation)
	for ; count < s.count; count++ {
		r.keys = append(r.keys, s.key(count))
	}
	return r
}

func (s *Source) parameter(parameter schema) any {
	name, schema := parameter.text("name"), s.resolve(parameter["schema"])
	if known, ok := s.others.pick(s, name); ok && !s.spoil && s.chance(10) && schema.fits(known) {
		return known
	}
	if known, ok := s.known.pick(s, name); ok && !s.spoil && s.chance(80) && parameter.text("in") != "header" && schema.fits(known) {
		return known
	}
	return s.value(name, parameter["schema"])
}

// accept returns a media type that the route answers with, or nothing.
func (s *Source) accept(operation schema) string {
	choices := []string{"", "*/*"}
	responses, _ := operation["responses"].(map[string]any)
	content, _ := s.resolve(responses["200"])["content"].(map[string]any)
	for mediaType := range content {
		choices = append(choices, mediaType, mediaType)
	}
	slices.Sort(choices)
	return pick(s, choices)
}

func (s *Source) addBody(r *Request, operation schema) {
	content, _ := s.resolve(operation["requestBody"])["content"].(map[string]any)
	media, ok := content[contentJSON].(map[string]any)
	if !ok {
		return
	}
	r.tree = s.value("", media["schema"])
	r.Body = encode(r.tree)
	if s.chance(10) {
		r.Chunk = 1 + int(s.small(int64(len(r.Body))))
	}
	r.Headers = append(r.Headers, Header{headerType, pick(s, []string{contentJSON, contentJSON, "application/json; charset=utf-8", "Application/JSON"})})
	s.rand.Shuffle(len(r.Headers), func(i, j int) { r.Headers[i], r.Headers[j] = r.Headers[j], r.Headers[i] })
}

// at returns a part of the document.
func (s *Source) at(names ...string) schema {
	var node any = s.document
	for _, name := range names {
		node = s.resolve(node)[name]
	}
	return s.resolve(node)
}

// NewKey makes an idempotency key that no request has had.
func (s *Source) NewKey() string {
	s.count++
	return s.key(s.count - 1)
}

// key ends in a letter, so that no key is a part of another one.
func (s *Source) key(n int) string { return fmt.Sprintf("%s-%dk", s.prefix, n) }

// isKey reports whether a member or parameter holds an idempotency key.
func isKey(name string) bool { return canonical(name) == canonical(headerKey) }

// isNew reports whether a value is better not one that was used before.
func isNew(name string) bool { return isKey(name) || strings.HasPrefix(name, "new_") }

func (s *Source) chance(percent int) bool { return s.rand.IntN(100) < percent }

func pick[T any](s *Source, choices []T) T { return choices[s.rand.IntN(len(choices))] }
