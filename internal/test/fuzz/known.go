package fuzz

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/passbook/passbook/internal/test/contract"
)

// known are values that requests and answers had, by the name of the member, parameter or header.
type known map[string][]any

// aliases are names of the same thing.
var aliases = map[string]string{
	"account": "number", "new_password": "password", "next_cursor": "cursor", "last_seq": "seq", "last_event_id": "seq", "current_password": "password",
	"finished_at": "created_at", "at": "created_at", "from": "created_at", "to": "created_at", "if_none_match": "etag",
}

func canonical(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	if alias, ok := aliases[name]; ok {
		return alias
	}
	return name
}

// add keeps the values that came last.
func (k known) add(name string, value any) {
	name = canonical(name)
	k[name] = last(append(k[name], value), maxKnown)
}

func (k known) pick(s *Source, name string) (any, bool) {
	values := k[canonical(name)]
	if len(values) == 0 {
		return nil, false
	}
	return pick(s, values), true
}

func last[T any](list []T, most int) []T { return list[max(0, len(list)-most):] }

// Learn takes from an answer what later requests may name.
func (s *Source) Learn(r Request, a contract.Answer) {
	if a.Status >= http.StatusBadRequest || r.Raw != "" || !IsSecured(r.Route) && r.Method == http.MethodGet {
		return
	}
	add := func(name string, value any) {
		if name != "" {
			s.known.add(name, value)
		}
	}
	scalars("", r.tree, add)
	scalars("", parse(string(a.Body)), add)
	if etag := a.Header.Get("ETag"); etag != "" {
		add("etag", etag)
	}
	if key := r.Key(); key != "" {
		add(headerKey, key)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Route.Path != "" {
		s.sent = last(append(s.sent, r.clone()), maxSent)
	}
	if link, ok := strings.CutPrefix(a.Header.Get("Link"), "<"); ok {
		link, _, _ = strings.Cut(link, ">")
		s.links = last(append(s.links, link), maxSent)
	}
}

// String of a request is what it was made for and how it was changed.
func (r Request) String() string {
	changes := "valid"
	if !r.IsValid() {
		changes = strings.Join(r.Changes, ", ")
	}
	return fmt.Sprintf("%s (%s)", r.Route, changes)
}
