package ops_test

import (
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ops"
)

const aTraceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// ParseOrigin reads what String wrote.
func TestOrigin(t *testing.T) {
	t.Parallel()
	for _, want := range []ops.Origin{
		{RequestID: "a.request"},
		{RequestID: strings.Repeat("A", 64), Span: ops.ParseTraceparent(aTraceparent)},
	} {
		got := ops.ParseOrigin(want.String())
		if got.RequestID != want.RequestID || !got.Span.Equal(want.Span) {
			t.Errorf("%q is read as %+v, want %+v", want, got, want)
		}
	}
}

// ParseOrigin reads nothing of a text that String did not write.
func TestOrigin_OtherText(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "/", "/" + aTraceparent, aTraceparent, "a.request", "a.request/b", "a.request/" + aTraceparent + "/",
		"a request/", strings.Repeat("A", 65) + "/",
	} {
		if got := ops.ParseOrigin(text); got.RequestID != "" || got.Span.IsValid() {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}
