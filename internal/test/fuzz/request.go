package fuzz

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/passbook/passbook/internal/test/contract"
)

// Request is a request as it is written to a connection.
type Request struct {
	Route   contract.Route // that it was made for
	Changes []string       // how it differs from a valid request; none where it is valid

	Method, Target, Version string
	Headers                 []Header // in this order; a name may be there twice
	Body                    string
	Chunk                   int    // the size of the body's chunks; 0 for a Content-Length
	Raw                     string // where set, is sent in place of all that
	Alone                   bool   // on a connection of its own

	tree any      // the body as JSON, as far as it is JSON
	keys []string // that were made for this request
}

// Header is a header as it is written.
type Header struct{ Name, Value string }

const (
	version     = "HTTP/1.1"
	bearer      = "Bearer "
	headerAuth  = "Authorization"
	headerType  = "Content-Type"
	headerHost  = "Host"
	contentJSON = "application/json"
)

// IsValid reports whether the request is as the document says.
func (r Request) IsValid() bool { return len(r.Changes) == 0 }

// Token returns the access token that the request carries; empty unless it carries it as it should.
func (r Request) Token() (token string) {
	for _, h := range r.Headers {
		if !strings.EqualFold(h.Name, headerAuth) {
			continue
		}
		value, ok := strings.CutPrefix(h.Value, bearer)
		if !ok || token != "" || r.Raw != "" {
			return ""
		}
		token = value
	}
	return token
}

// Key returns the value of the request's first Idempotency-Key.
func (r Request) Key() string {
	for _, h := range r.Headers {
		if strings.EqualFold(h.Name, headerKey) {
			return h.Value
		}
	}
	return ""
}

// Text returns the bytes that are sent.
func (r Request) Text() string {
	if r.Raw != "" {
		return r.Raw
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s\r\n", r.Method, r.Target, r.Version)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
	}
	switch {
	case r.Chunk > 0:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		for rest := r.Body; rest != ""; {
			size := min(r.Chunk, len(rest))
			fmt.Fprintf(&b, "%x\r\n%s\r\n", size, rest[:size])
			rest = rest[size:]
		}
		b.WriteString("0\r\n\r\n")
	case r.Body != "" || r.Method != "GET" && r.Method != "HEAD":
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(r.Body), r.Body)
	default:
		b.WriteString("\r\n")
	}
	return b.String()
}

// Renew returns the request with new keys in place of those that were made for it, so that an answer
// to it is no replay.
func (r Request) Renew(newKey func() string) Request {
	r = r.clone()
	for i, old := range r.keys {
		fresh := newKey()
		for j := range r.Headers {
			r.Headers[j].Value = strings.ReplaceAll(r.Headers[j].Value, old, fresh)
		}
		r.Body, r.Raw = strings.ReplaceAll(r.Body, old, fresh), strings.ReplaceAll(r.Raw, old, fresh)
		r.keys[i] = fresh
	}
	r.tree = parse(r.Body)
	return r
}

func (r Request) clone() Request {
	r.Changes, r.Headers, r.keys = slices.Clone(r.Changes), slices.Clone(r.Headers), slices.Clone(r.keys)
	r.tree = cloneTree(r.tree)
	return r
}

// Command returns the request as a shell command for an API at address: curl, or where curl would
// change the request, printf and nc.
func (r Request) Command(address string) string {
	if !r.isForCurl() {
		host, port, _ := net.SplitHostPort(address) // an empty host shows that it is no address
		return fmt.Sprintf("printf '%%b' %s | nc -N %s %s", quote(escape(r.Text())), host, port)
	}
	parts := []string{"curl", "-sS", "-i", "--path-as-is", "-X", r.Method}
	if r.Method == "HEAD" {
		parts = []string{"curl", "-sS", "--path-as-is", "--head"}
	}
	for _, h := range r.Headers {
		switch {
		case h.Name == headerHost:
		case h.Value == "":
			parts = append(parts, "-H", quote(h.Name+";"))
		default:
			parts = append(parts, "-H", quote(h.Name+": "+h.Value))
		}
	}
	if r.Body != "" {
		if !r.has(headerType) {
			parts = append(parts, "-H", quote(headerType+":")) // curl's own would be of a form
		}
		parts = append(parts, "--data-binary", quote(r.Body))
	}
	return strings.Join(append(parts, quote("http://"+address+r.Target)), " ")
}

func (r Request) has(name string) bool {
	return slices.ContainsFunc(r.Headers, func(h Header) bool { return strings.EqualFold(h.Name, name) })
}

// isForCurl reports whether curl sends the request as it is.
func (r Request) isForCurl() bool {
	names := map[string]bool{}
	for _, h := range r.Headers {
		if name := strings.ToLower(h.Name); names[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") != "" {
			return false
		}
		names[strings.ToLower(h.Name)] = true
		if !isPrintable(h.Value) || strings.TrimSpace(h.Value) != h.Value {
			return false
		}
	}
	return r.Raw == "" && r.Chunk == 0 && r.Version == version && names["host"] && isPrintable(r.Body) && isPrintable(r.Target) &&
		strings.HasPrefix(r.Target, "/") && !strings.ContainsAny(r.Target, " #[]{}") && strings.Trim(r.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

func isPrintable(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' })
}

// quote quotes a text for a shell.
func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// escape writes a text as printf's %b reads it.
func escape(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		switch {
		case c == '\\':
			b.WriteString(`\\`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\n':
			b.WriteString(`\n`)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\0%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
