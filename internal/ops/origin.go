package ops

import (
	"strings"

	"go.opentelemetry.io/otel/trace"
)

// Origin is the request that a job comes from, as logs and traces name it.
type Origin struct {
	RequestID string            // 1 to 64 characters of A–Z, a–z, 0–9, ".", "_", "-"
	Span      trace.SpanContext // of the request; invalid if it is not traced
}

// String writes the origin as REQUEST, or REQUEST/TRACEPARENT if it is traced.
func (o Origin) String() string {
	if !o.Span.IsValid() {
		return o.RequestID
	}
	return o.RequestID + "/" + Traceparent(o.Span)
}

// ParseOrigin reads what String wrote. Of any other text it returns what it can read.
func ParseOrigin(text string) Origin {
	id, parent, _ := strings.Cut(text, "/")
	if parent == "" {
		return Origin{RequestID: id}
	}
	return Origin{RequestID: id, Span: ParseTraceparent(parent)}
}
