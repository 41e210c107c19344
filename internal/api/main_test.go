package api

import (
	"flag"
	"testing"

	"go.uber.org/goleak"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	// These tests mostly wait: for a time limit, a browser, a connection that stays idle. With one at a
	// time for each processor, half of the machine would do nothing. -parallel overrides this.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	// fasthttp's clock never ends, and its worker pool ends up to ten seconds
	// after the server.
	testenv.Main(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}
