package ops

import (
	"strings"

	"go.opentelemetry.io/otel/trace"
)

// Origin is the request that a job comes from, as logs and traces name it.
type Origin struct {
	RequestID string            // as IsRequestID wants it; empty if it is unknown
	Span      trace.SpanContext // of the request; invalid if it is not traced
}

const maxRequestID = 64

// IsRequestID returns whether an id has 1 to 64 characters of A–Z, a–z, 0–9, ".", "_" and "-".
func IsRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for _, r := range []byte(id) {
		isAlnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !isAlnum && r != '.' && r != '_' && r != '-' {
			return false
		}
	}
	return true
}

// String writes the origin as REQUEST/TRACEPARENT. What follows the stroke is empty if the request is
// not traced.
func (o Origin) String() string { return o.RequestID + "/" + Traceparent(o.Span) }

// ParseOrigin reads what String wrote. It returns the zero Origin for any other text.
func ParseOrigin(text string) Origin {
	id, parent, _ := strings.Cut(text, "/")
	span := ParseTraceparent(parent)
	if !IsRequestID(id) || text != id+"/" && !span.IsValid() {
		return Origin{}
	}
	return Origin{RequestID: strings.Clone(id), Span: span} // the text may be a part of a longer one
}
