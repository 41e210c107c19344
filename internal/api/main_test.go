package api

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	// fasthttp's clock never ends, and its worker pool ends up to ten seconds
	// after the server.
	testenv.Main(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}
