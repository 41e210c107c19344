package ops_test

import (
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/passbook/passbook/internal/ops"
)

// ParseOrigin reads what String wrote, and of other texts what it can.
func TestOrigin(t *testing.T) {
	t.Parallel()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	span := ops.ParseTraceparent(parent).WithRemote(true)
	for name, test := range map[string]struct {
		text string
		want ops.Origin
	}{
		"Traced":     {"a.request/" + parent, ops.Origin{RequestID: "a.request", Span: span}},
		"Not traced": {"a.request", ops.Origin{RequestID: "a.request"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := ops.ParseOrigin(test.text)
			if got.RequestID != test.want.RequestID || !got.Span.Equal(test.want.Span) {
				t.Errorf("ParseOrigin(%q) = %+v, want %+v", test.text, got, test.want)
			}
			if got.String() != test.text {
				t.Errorf("written again it is %q, want %q", got, test.text)
			}
		})
	}
	for _, text := range []string{"", "/", "/" + parent, "a/b", "a/" + parent + "/"} {
		if got := ops.ParseOrigin(text); got.RequestID != "" && got.RequestID != "a" || text != "/"+parent && !got.Span.Equal(trace.SpanContext{}) {
			t.Errorf("ParseOrigin(%q) = %+v", text, got)
		}
	}
}
